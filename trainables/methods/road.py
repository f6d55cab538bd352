"""RoAd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod, Sides


class Road(PeftMethod):
    """R W0 with R rotating and scaling pairs of outputs.

    Attributes:
        variant: 1 has an angle and a scale for each pair, 2 for each output, 4 two for each output.
        group_size: pairs are half a group apart. It must divide the outputs of each adapted layer
            and matters for the speed of inference only.
    """

    name: ClassVar[str] = "road"
    title: ClassVar[str] = "RoAd"
    source: ClassVar[str] = "Liao & Monz 2024, 2409.00119"
    peft_class: ClassVar[str] = "RoadConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"group_size": "group_size"}
    divides: ClassVar[Mapping[str, Sides]] = {"group_size": "outputs"}
    capacity_field: ClassVar[str | None] = "variant"
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("road_theta",)
    interpolated: ClassVar[tuple[str, ...]] = ("road_alpha",)
    scales_linearly: ClassVar[bool] = False

    variant: Literal[1, 2, 4] = 1
    group_size: int = Field(default=32, ge=2, multiple_of=2)

    def peft_config(self, steps: int) -> Any:
        """With the variant by its name."""
        config = super().peft_config(steps)
        config.variant = f"road_{self.variant}"
        return config

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """Angles and scales."""
        return self.variant * outputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The outputs, as they are and in pairs, in fp32."""
        return Footprint(
            per_token_fp32=2 * outputs, brief_per_token=2.5 * outputs, keeps_input=False
        )
