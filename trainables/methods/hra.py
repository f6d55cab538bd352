"""HRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class Hra(PeftMethod):
    """W0 H_1 ... H_r, a chain of Householder reflections H_i = I - 2 u_i u_i^T, |u_i| = 1.

    Attributes:
        reflections: r, in pairs that cancel at the start.
    """

    name: ClassVar[str] = "hra"
    title: ClassVar[str] = "HRA"
    source: ClassVar[str] = "Yuan et al. 2024, 2405.17484"
    peft_class: ClassVar[str] = "HRAConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"reflections": "r"}
    capacity_field: ClassVar[str | None] = "reflections"
    interpolated: ClassVar[tuple[str, ...]] = ("hra_u",)
    scales_linearly: ClassVar[bool] = False

    reflections: int = Field(default=8, ge=2, multiple_of=2)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The u_i."""
        return self.reflections * inputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, W0 R, and the product after each reflection."""
        square = inputs**2
        return Footprint(
            matrices=outputs * inputs + (self.reflections + 1.25) * square,
            brief=1.5 * square,
            copies_input=False,
        )
