"""Uni-LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class UniLora(PeftMethod):
    """W0 + B A where each number of A and B is one of a single trained vector, by a fixed draw.

    Attributes:
        vector_size: length of the vector that all layers share.
        rank: R of A (R, I) and B (O, R).
    """

    name: ClassVar[str] = "unilora"
    title: ClassVar[str] = "Uni-LoRA"
    source: ClassVar[str] = "Li et al. 2025, 2506.00799"
    peft_class: ClassVar[str] = "UniLoraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"vector_size": "theta_d_length", "rank": "r"}
    capacity_field: ClassVar[str | None] = "vector_size"
    starts_at_base: ClassVar[bool] = False
    scaled: ClassVar[tuple[str, ...]] = ("unilora_theta_d",)
    scaled_degree: ClassVar[int] = 2

    vector_size: int = Field(default=256, ge=1)
    rank: int = Field(default=4, ge=1)

    def parameters(self, shape: ModelShape) -> int:
        """The vector."""
        return self.vector_size

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """For each number of A and B its place in the vector, and a norm."""
        return 2 * self.rank * (outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, A x, and the factors."""
        return Footprint(per_token=self.rank, matrices=self.rank * (outputs + inputs))
