"""The mean of several trainings of one setting, which differ by their seeds alone.

Shapes: O outputs, I inputs, R rank of an adapter, N trainings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainables.errors import CannotRepair
from trainables.inspection.saved_weights import SavedWeights, read_config
from trainables.post_steps.weights_folder import rewrite, take_over

_A, _B = ".lora_A.", ".lora_B."


def mean_adapter(weights: Sequence[Path], target: Path) -> None:
    """Write the LoRA whose update is the mean of the adapters' updates, exactly.

    s B A with A the adapters' one below the other (N R, I), B side by side (O, N R) over N, and
    alpha such that s is theirs. The mean of the factors would be another update.

    Raises:
        CannotRepair: they adapt single parameters, or not all of it is low-rank factors.
    """
    first, *_ = weights
    settings = read_config(first / "adapter_config.json")
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in weights]
    names = adapters[0].keys()
    if settings.get("target_parameters") or not all(_A in name or _B in name for name in names):
        raise CannotRepair("its adapter holds more than low-rank factors of matrices")
    count = len(adapters)

    def joined(name: str) -> torch.Tensor:
        parts = [adapter[name] for adapter in adapters]
        if _A in name:
            return torch.cat(parts, dim=0)
        return torch.cat([part / count for part in parts], dim=1)

    take_over(first, target)
    rewrite(target, {name: joined(name) for name in names})
    widened = json.dumps(settings | _scaled_as_before(settings, count), indent=2)
    (target / "adapter_config.json").write_text(widened)


def _scaled_as_before(settings: dict[str, Any], count: int) -> dict[str, Any]:
    """Rank and alpha of so many adapters in one: alpha / rank, or alpha / sqrt(rank), stays.

    What they started from may have no form of this rank, and is not asked for again.
    """
    growth = count**0.5 if settings.get("use_rslora") else count
    size = {"r": settings["r"] * count, "lora_alpha": settings["lora_alpha"] * growth}
    return {**size, "init_lora_weights": True}


def mean_model(weights: Sequence[Path], target: Path) -> None:
    """Write the model whose weights are the means of the models' (2203.05482, uniform soup).

    Each tensor is summed in float32 and kept in its dtype; integers are those of the first.
    """
    first, *_ = weights
    models = [SavedWeights(folder) for folder in weights]
    take_over(first, target)
    rewrite(
        target,
        {
            name: torch.stack([model[name].float() for model in models]).mean(0).to(tensor.dtype)
            for name, tensor in models[0].items()
            if tensor.is_floating_point()
        },
    )
