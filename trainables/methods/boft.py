"""BOFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod, Sides


class Boft(PeftMethod):
    """diag(s) W0 R with R orthogonal, one butterfly factor of Cayley blocks, as PEFT's default.

    PEFT has more factors only where it can compile its CUDA kernel.

    Attributes:
        block_size: of the blocks of R; it must divide the inputs of each adapted layer.
    """

    name: ClassVar[str] = "boft"
    title: ClassVar[str] = "BOFT"
    source: ClassVar[str] = "Liu et al. 2023, 2311.06243"
    peft_class: ClassVar[str] = "BOFTConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"block_size": "boft_block_size"}
    divides: ClassVar[Mapping[str, Sides]] = {"block_size": "inputs"}
    capacity_field: ClassVar[str | None] = "block_size"
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("boft_R",)
    interpolated: ClassVar[tuple[str, ...]] = ("boft_s",)
    scales_linearly: ClassVar[bool] = False

    block_size: int = Field(default=4, ge=2)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """Whole blocks, whose skew-symmetric part counts, and s."""
        return inputs * self.block_size + outputs

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """The factor's permutation as a matrix."""
        return inputs**2

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, the output before its scale, and R as a matrix."""
        square, blocks = inputs**2, inputs * self.block_size
        return Footprint(
            per_token=outputs,
            per_layer=square + 4 * blocks,
            matrices=square,
            brief=1.3 * square,
            copies_input=False,
        )
