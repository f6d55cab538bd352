"""A copy of a trial's weights, to be changed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def take_over(weights: Path, target: Path) -> None:
    """Copy a trial's weights, with what lies beside them, into an empty folder."""
    shutil.copytree(weights, target, dirs_exist_ok=True)


def rewrite(folder: Path, changed: Mapping[str, torch.Tensor]) -> None:
    """Replace tensors in the folder's files, by name, each in its own dtype.

    One file is in memory at a time.
    """
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        for name in tensors.keys() & changed.keys():
            tensors[name] = changed[name].to("cpu", tensors[name].dtype).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})
