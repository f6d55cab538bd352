"""Every random number that a resumed training draws is the one that an undisturbed one draws."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables.training import checkpoint, random_state


def drawn() -> list[list[float]]:
    """From each library, numbers and normal ones, of which numpy makes two at a time."""
    return [
        [*torch.rand(2).tolist(), *torch.randn(3).tolist()],
        [*np.random.random(2).tolist(), *np.random.normal(size=3).tolist()],
        [random.random(), random.random()],
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_worker_goes_on_with_its_own(rank: int, tmp_path: Path) -> None:
    layer: Any = torch.nn.Linear(2, 1)
    adam = torch.optim.AdamW(layer.parameters())
    progress = checkpoint.Progress(step=1, tokens_seen=0, scheduler={}, carried={})
    states, expected = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        drawn()
        of_worker = checkpoint.take(layer, adam, progress)
        states += of_worker.random
        expected.append(drawn())
    checkpoint.write(tmp_path / "step", replace(of_worker, random=states))
    state = checkpoint.load_random_state(tmp_path / "step", rank)
    assert state is not None
    random_state.restore(state)
    assert drawn() == expected[rank]
    assert checkpoint.load_random_state(tmp_path / "step", rank=2) is None
