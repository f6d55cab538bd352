"""A trial's weight update dW = W - W0 as a stream of matrices, one in memory at a time.

Shapes: O outputs, I inputs, R rank of the adapter. Only the matrices of the decoder's layers are
included, whatever the method: not embeddings, norms, the head, stacked experts (three
dimensions) or encoders of images and sound. GPT-2 stores its weights as (I, O); here all are
(O, I), so that left singular vectors are in the output space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from trainables.config import TrialConfig
from trainables.errors import CannotInspect
from trainables.inspection.saved_weights import SavedWeights, Weights, read_config
from trainables.methods import Method
from trainables.models.adapter import Adapted
from trainables.models.four_bit import plain_model
from trainables.models.loading import load_model

# Models built from Transformers' Conv1D.
INPUTS_FIRST = ("gpt2", "openai-gpt")

Matrix = tuple[str, str, torch.Tensor]  # its name in memory and in the trial's files, and W0


@dataclass(frozen=True)
class MatrixUpdate:
    """The update of one weight matrix, in float32.

    Attributes:
        name: the weight's in the base in memory.
        base_OI: W0.
        delta: dW (O, I), or B (O, R), with the scaling folded in, and A (R, I) with dW = B A.
    """

    name: str
    base_OI: torch.Tensor
    delta: torch.Tensor | tuple[torch.Tensor, torch.Tensor]

    @property
    def layer(self) -> int:
        """Layer of the decoder, from 0."""
        layer = layer_of(self.name)
        assert layer is not None  # noqa: S101 - `updates` makes no other
        return layer

    @property
    def module(self) -> str:
        """Name within the layer, such as `self_attn.q_proj`."""
        return self.name.partition(f".{self.layer}.")[2].removesuffix(".weight")

    @property
    def rank_limit(self) -> int:
        """The largest possible rank of dW."""
        limits = [*self.base_OI.shape]
        if isinstance(self.delta, tuple):
            limits.append(len(self.delta[1]))
        return int(min(limits))

    def tuned(self) -> torch.Tensor:
        """W = W0 + dW (O, I), float32."""
        if isinstance(self.delta, tuple):
            return torch.addmm(self.base_OI, *self.delta)
        return self.base_OI + self.delta


def updates(
    config: TrialConfig, weights_dir: Path, base: Weights, hollow: Any, device: torch.device
) -> Iterator[MatrixUpdate]:
    """The update of every matrix that the trial trained, in layer order, computed on the device.

    `hollow` is the `hollow_model`, or the base itself.

    Raises:
        CannotInspect: base and trial do not match, or weights are not finite or damaged.
        FileNotFoundError: the folder holds no safetensors, or no configuration of them.
    """
    saved = SavedWeights(weights_dir)
    in_base = decoder_matrices(hollow, base)
    if config.method.changes_base:
        matrices = _in_layers(in_base, decoder_matrices(hollow, saved), base, device)
        return _full_updates(weights_dir, saved, matrices)
    if not config.method.merges:
        raise CannotInspect(f"{config.method.title} trains no matrices of the base")
    of_module, merged = _tensors_by_module(saved, in_base), _Merged(config, weights_dir)
    adapted = of_module or merged.names  # layers may share all that is saved
    matrices = _in_layers(in_base, {name: name for name in adapted}, base, device)
    return _adapter_updates(config.method, weights_dir, saved, of_module, merged, matrices)


def _in_layers(
    in_base: dict[str, str], in_trial: dict[str, str], base: Weights, device: torch.device
) -> Iterator[Matrix]:
    """The base's matrices that the trial trained, by layer."""
    shared = sorted(in_base.keys() & in_trial.keys(), key=lambda name: (layer_of(name) or 0, name))
    if not shared:
        raise CannotInspect("the base has none of the matrices that the trial trained")
    return (
        (name, in_trial[name], base[in_base[name]].to(device, torch.float32)) for name in shared
    )


def _full_updates(
    weights_dir: Path, saved: Weights, matrices: Iterable[Matrix]
) -> Iterator[MatrixUpdate]:
    model_type = read_config(weights_dir / "config.json").get("model_type")
    for name, in_trial, base_OI in matrices:
        tuned_OI = saved[in_trial].to(base_OI)
        dense_OI = _finite(name, tuned_OI - base_OI)
        if model_type in INPUTS_FIRST:
            base_OI, dense_OI = base_OI.T, dense_OI.T
        yield MatrixUpdate(name, base_OI, dense_OI)


def _adapter_updates(
    method: Method,
    weights_dir: Path,
    saved: Weights,
    of_module: dict[str, dict[str, str]],
    merged: _Merged,
    matrices: Iterable[Matrix],
) -> Iterator[MatrixUpdate]:
    """What the method computes from its tensors, else what merging them changes."""
    adapter = read_config(weights_dir / "adapter_config.json")
    transposed = bool(adapter.get("fan_in_fan_out"))
    for name, _, base_OI in matrices:
        if transposed:
            base_OI = base_OI.T
        own = of_module.get(name, {})
        tensors = {last: _finite(name, saved[full].to(base_OI)) for last, full in own.items()}
        try:
            delta = method.stored_update(tensors, base_OI)
        except KeyError as error:
            raise CannotInspect(f"{weights_dir} lacks {name} {error}") from error
        if delta is None:
            delta = merged.change(name).to(base_OI)
            delta = delta.T if transposed else delta
        yield MatrixUpdate(name, base_OI, delta)


def _tensors_by_module(saved: Weights, in_base: dict[str, str]) -> dict[str, dict[str, str]]:
    """For each of the base's matrices, the names of the adapter's tensors by their last parts."""
    of_module: dict[str, dict[str, str]] = {}
    for full in saved:
        parts = full.removeprefix("base_model.model.").split(".")
        for end in range(len(parts) - 1, 0, -1):  # the longest that is a module's
            if (name := f"{'.'.join(parts[:end])}.weight") in in_base:
                of_module.setdefault(name, {})[".".join(parts[end:])] = full
                break
    return of_module


class _Merged:
    """A trial's adapter on a base of its own in fp32, which merging changes layer by layer."""

    def __init__(self, config: TrialConfig, weights_dir: Path) -> None:
        self._config, self._weights_dir = config, weights_dir

    @cached_property
    def _layers(self) -> dict[str, Any]:
        base = load_model(self._config.model)
        if self._config.model.load_in_4bit:
            base = plain_model(base, torch.float32)
        adapted = Adapted.saved(base.float(), self._weights_dir).model
        prefix = "base_model.model."
        return {
            name.removeprefix(prefix): module
            for name, module in adapted.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    @property
    def names(self) -> list[str]:
        """The weights of the adapted layers."""
        return [f"{name}.weight" for name in self._layers]

    @torch.no_grad()
    def change(self, name: str) -> torch.Tensor:
        """W - W0 of a weight, as the base stores it, on the CPU."""
        layer = self._layers[name.removesuffix(".weight")]
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge(safe_merge=True)
        return (layer.get_base_layer().weight.detach() - before).cpu()


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.isfinite().all():
        raise CannotInspect(f"{name} has weights that are not finite")
    return tensor


def decoder_matrices(model: Any, in_files: Iterable[str]) -> dict[str, str]:
    """The name in memory of each matrix in the decoder's layers, and its name in files.

    Transformers renames weights in loading and saving, and builds some, such as stacked experts,
    from several, which are left out. `model` is the base, possibly hollow; `in_files` are the saved
    names of its weights, or of a tuned copy's.
    """
    weights = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    converters = [step for step in transforms if isinstance(step, WeightConverter)]
    renamings = [step for step in transforms if not isinstance(step, WeightConverter)]
    decoder = model.get_decoder()
    (path,) = (name for name, module in model.named_modules() if module is decoder)
    prefix = f"{path}." if path else ""
    found = {}
    for name in in_files:
        in_memory, converter = rename_source_key(
            name, renamings, converters, model.base_model_prefix, weights
        )
        is_in_layers = in_memory.startswith(prefix) and layer_of(in_memory) is not None
        is_as_saved = converter is None and in_memory in weights
        if is_in_layers and is_as_saved and weights[in_memory].ndim == 2:
            found[in_memory] = name
    return found


def layer_of(name: str) -> int | None:
    """The first number in a dotted name; None for weights outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
