"""LN tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.decoder_shape import ModelShape
from trainables.methods.peft_method import PeftAdapter


class LNTuning(PeftAdapter):
    """A copy of all normalisation layers is trained, and nothing else."""

    name: ClassVar[str] = "lntuning"
    title: ClassVar[str] = "LN tuning"
    source: ClassVar[str] = "Zhao et al. 2023, 2312.11420"
    peft_class: ClassVar[str] = "LNTuningConfig"
    peft_options: ClassVar[Mapping[str, Any]] = {
        "target_modules": r"(.*\.)?\w*(norm|ln_)\w*"  # `input_layernorm`, `norm_1`, `ln_f`
    }
    takes_4bit: ClassVar[bool] = True
    interpolated: ClassVar[tuple[str, ...]] = ("ln_tuning_layers",)

    def parameters(self, shape: ModelShape) -> int:
        """Two norms a layer, those of queries and keys, and the last one."""
        heads = 2 * shape.head_size if shape.normed_heads else 0
        return shape.layers * (2 * shape.hidden + heads) + shape.hidden
