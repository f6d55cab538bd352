"""OFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class Oft(PeftMethod):
    """W0 R with R block-diagonal and orthogonal: each block is (I + Q)(I - Q)^-1, Q skew-symmetric.

    Attributes:
        block_size: of the blocks of R; more is more parameters. A layer whose inputs it does not
            divide takes the nearest size that does.
        cayley_neumann: approximate the inverse by five terms of its series.
    """

    name: ClassVar[str] = "oft"
    title: ClassVar[str] = "OFT"
    source: ClassVar[str] = "Qiu et al. 2023, 2306.07280"
    peft_class: ClassVar[str] = "OFTConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "block_size": "oft_block_size",
        "cayley_neumann": "use_cayley_neumann",
    }
    capacity_field: ClassVar[str | None] = "block_size"
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("oft_R",)
    scales_linearly: ClassVar[bool] = False

    block_size: int = Field(default=32, ge=2)
    cayley_neumann: bool = True

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The upper triangle of each block's Q."""
        return inputs * (self._block(inputs) - 1) // 2

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """The rows and columns of the upper triangle."""
        return self._block(inputs) * (self._block(inputs) - 1)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and, of the blocks, the powers of Q and R."""
        blocks = inputs * self._block(inputs)
        return Footprint(per_layer=3.5 * blocks, brief=2.5 * blocks, brief_per_token=2 * inputs)

    def _block(self, inputs: int) -> int:
        """The nearest size to `block_size` that divides the inputs."""
        sizes = (size for size in range(1, inputs + 1) if inputs % size == 0)
        return min(sizes, key=lambda size: abs(size - self.block_size))
