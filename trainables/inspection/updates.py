"""A trial's weight update dW = W - W0 as a stream of matrices, one in memory at a time.

Shapes: O outputs, I inputs, R rank of the adapter. Only the matrices of the decoder's layers are
included, for LoRA as for full fine-tuning: not embeddings, norms, the head, stacked experts (three
dimensions) or encoders of images and sound. GPT-2 stores its weights as (I, O); here all are
(O, I), so that left singular vectors are in the output space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key

from trainables.config import LoraConfig, TrialConfig
from trainables.errors import CannotInspect
from trainables.inspection.saved_weights import SavedWeights, Weights, read_config

# Models built from Transformers' Conv1D.
_INPUTS_FIRST = ("gpt2", "openai-gpt")

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
    if config.lora is None:
        in_trial = decoder_matrices(hollow, saved)
    else:
        in_trial = {f"{_adapted_module(n)}.weight": n for n in saved if ".lora_A." in n}
    shared = sorted(in_base.keys() & in_trial.keys(), key=lambda name: (layer_of(name) or 0, name))
    if not shared:
        raise CannotInspect("the base has none of the matrices that the trial trained")
    matrices = (
        (name, in_trial[name], base[in_base[name]].to(device, torch.float32)) for name in shared
    )
    if config.lora is None:
        return _full_updates(weights_dir, saved, matrices)
    return _lora_updates(config.lora, weights_dir, saved, matrices)


def _full_updates(
    weights_dir: Path, saved: Weights, matrices: Iterable[Matrix]
) -> Iterator[MatrixUpdate]:
    model_type = read_config(weights_dir / "config.json").get("model_type")
    for name, in_trial, base_OI in matrices:
        tuned_OI = saved[in_trial].to(base_OI)
        dense_OI = _finite(name, tuned_OI - base_OI)
        if model_type in _INPUTS_FIRST:
            base_OI, dense_OI = base_OI.T, dense_OI.T
        yield MatrixUpdate(name, base_OI, dense_OI)


def _lora_updates(
    lora: LoraConfig, weights_dir: Path, saved: Weights, matrices: Iterable[Matrix]
) -> Iterator[MatrixUpdate]:
    """B A of a saved PEFT adapter or, with DoRA, the dense update.

    DoRA (2402.09353, eq. 5) gives each output's row a trained norm m:
    dW = m (W0 + B A) / norm(W0 + B A) - W0.
    """
    adapter = read_config(weights_dir / "adapter_config.json")
    transposed = bool(adapter.get("fan_in_fan_out"))
    magnitudes = {_adapted_module(n): n for n in saved if "lora_magnitude_vector" in n}
    for name, in_trial, base_OI in matrices:
        module = _adapted_module(in_trial)
        name_B = in_trial.replace(".lora_A.", ".lora_B.")
        B_OR = saved.get(name_B)
        if B_OR is None:
            raise CannotInspect(f"{weights_dir} lacks {name_B}")
        A_RI = _finite(module, saved[in_trial].to(base_OI))
        B_OR = _finite(module, B_OR.to(base_OI) * lora.scaling)
        if transposed:
            base_OI = base_OI.T
        if module in magnitudes:
            norm_O = saved[magnitudes[module]].to(base_OI).flatten()
            tuned_OI = torch.addmm(base_OI, B_OR, A_RI)
            tuned_OI *= (norm_O / tuned_OI.norm(dim=1))[:, None]
            yield MatrixUpdate(name, base_OI, tuned_OI.sub_(base_OI))
        else:
            yield MatrixUpdate(name, base_OI, (B_OR, A_RI))


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.isfinite().all():
        raise CannotInspect(f"{name} has weights that are not finite")
    return tensor


def _adapted_module(adapter_name: str) -> str:
    """The name in the base of the module that an adapter's tensor belongs to."""
    module, _, _ = adapter_name.partition(".lora_")
    return module.removeprefix("base_model.model.")


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
