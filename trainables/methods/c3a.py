"""C3A."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod, Sides


class C3a(PeftMethod):
    """W0 + C / I with C made of circulant blocks, zero at the start.

    Attributes:
        block_size: of the blocks; more is fewer parameters. It must divide the inputs and outputs
            of each adapted layer.
    """

    name: ClassVar[str] = "c3a"
    title: ClassVar[str] = "C3A"
    source: ClassVar[str] = "Chen et al. 2024, 2407.19342"
    peft_class: ClassVar[str] = "C3AConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"block_size": "block_size"}
    divides: ClassVar[Mapping[str, Sides]] = {"block_size": "both"}
    peft_options: ClassVar[Mapping[str, Any]] = {"init_weights": True}
    capacity_field: ClassVar[str | None] = "block_size"
    capacity_falls: ClassVar[bool] = True
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("c3a_kernel",)

    block_size: int = Field(default=32, ge=1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """One row of each block."""
        return outputs * inputs // self.block_size

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, in fp32."""
        return Footprint(per_token_fp32=inputs / 2, brief_per_token=3 * (outputs + inputs))
