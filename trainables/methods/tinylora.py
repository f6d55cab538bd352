"""TinyLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class TinyLora(PeftMethod):
    """W0 + B (sum_i v_i P_i) A with B A the R strongest directions of W0, P_i random and frozen.

    Attributes:
        vector_size: length of v.
        rank: R of A (R, I), B (O, R) and P_i (R, R).
        tying: share of the layers that use the v of another.
    """

    name: ClassVar[str] = "tinylora"
    title: ClassVar[str] = "TinyLoRA"
    source: ClassVar[str] = "Morris et al. 2026, 2602.04118"
    peft_class: ClassVar[str] = "TinyLoraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "vector_size": "u",
        "rank": "r",
        "tying": "weight_tying",
    }
    capacity_field: ClassVar[str | None] = "vector_size"
    scaled: ClassVar[tuple[str, ...]] = ("tinylora_v",)

    vector_size: int = Field(default=64, ge=1)
    rank: int = Field(default=2, ge=1)
    tying: float = Field(default=0.0, ge=0, le=1)

    def parameters(self, shape: ModelShape) -> int:
        """One v for each group of layers."""
        layers = shape.layers * len(self._sizes(shape))
        groups = max(1, round(layers * (1 - self.tying)))
        group = layers // groups
        return self.vector_size * min(-(-layers // group), groups)

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """A, B and the P_i."""
        return self.rank * (outputs + inputs) + self.vector_size * self.rank**2

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x."""
        return Footprint(
            per_token=self.rank,
            per_layer=self.frozen_layer_parameters(outputs, inputs) / 2,
            keeps_input=False,
        )
