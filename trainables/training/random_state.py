"""The random state of a worker: of torch, of its GPU, of numpy and of Python."""

from __future__ import annotations

import random

import numpy as np
import torch


def read() -> dict[str, torch.Tensor]:
    """The random state as tensors, by library."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, _ = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss]),
        "numpy_gauss": torch.tensor(gauss, dtype=torch.float64),
        "python": torch.tensor([version, *internal]),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, torch.Tensor]) -> None:
    """Restore what `read` gave; a GPU's only if there is one."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    position, has_gauss = state["numpy_position"].tolist()
    np.random.set_state(
        (
            "MT19937",
            state["numpy_keys"].numpy().astype(np.uint32),
            position,
            has_gauss,
            float(state["numpy_gauss"]),
        )
    )
    version, *internal = state["python"].tolist()
    random.setstate((version, tuple(internal), None))
