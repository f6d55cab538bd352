"""Weights on disk, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainables.config import ModelConfig
from trainables.errors import CannotInspect
from trainables.models.four_bit import plain_weights
from trainables.models.loading import load_model, local_folder
from trainables.models.model_shape import config_json
from trainables.models.quantised_files import quantisation_method
from trainables.storage.disk import whole_file

Weights = Mapping[str, torch.Tensor]
"""Tensors of a model, on the CPU."""


class SavedWeights(Weights):
    """The tensors of a folder's safetensors, in one file or sharded by an index.

    A tensor is read when it is looked up, in its saved dtype unless another is given. All files
    stay open, mapped but not read.

    Raises:
        FileNotFoundError: the folder holds no safetensors.
        CannotInspect: a file is damaged.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._files: dict[Path, Any] = {}
        self._file_of: dict[str, Path] = {}
        for index in folder.glob("*.safetensors.index.json"):
            shards = read_config(index).get("weight_map", {})
            if strays := [shard for shard in shards.values() if Path(shard).name != shard]:
                raise CannotInspect(f"{index} names a file outside of its folder: {strays[0]}")
            self._file_of |= {name: folder / shard for name, shard in shards.items()}
        if not self._file_of:
            for file in sorted(folder.glob("*.safetensors")):
                self._file_of |= dict.fromkeys(self._open(file).keys(), file)
        if not self._file_of:
            raise FileNotFoundError(f"no safetensors in {folder}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._open(self._file_of[name]).get_tensor(name).to(self._dtype)

    def check(self) -> None:
        """Check by their headers that all files are there and whole.

        Raises:
            FileNotFoundError: one is missing.
            CannotInspect: one is damaged, or was cut off.
        """
        for file in set(self._file_of.values()):
            self._open(file)

    def _open(self, file: Path) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise CannotInspect(f"{file} is damaged: {error}") from error
        return self._files[file]


def save_whole(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file atomically."""
    with whole_file(file) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
        unfinished.chmod(file.parent.stat().st_mode & 0o666)  # see `give_usual_modes`


def read_config(file: Path) -> dict[str, Any]:
    """A JSON file that was saved beside the weights.

    Raises:
        FileNotFoundError: there is none.
        CannotInspect: it is damaged.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CannotInspect(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CannotInspect(f"{file} is damaged: it holds no settings")
    return content


def base_weights(model: ModelConfig) -> Weights:
    """The base model's weights in its training dtype, so that rounding does not count as an update.

    They are read from its safetensors; a base in 4 bits or in another format is loaded as a whole.

    Raises:
        UserError: it cannot be loaded.
    """
    dtype = getattr(torch, model.dtype)
    if model.load_in_4bit:
        return plain_weights(load_model(model), dtype)
    if not quantisation_method(config_json(model, may_fetch=True)):
        with suppress(FileNotFoundError):
            return SavedWeights(local_folder(model), dtype)
    return dict(load_model(model).state_dict())
