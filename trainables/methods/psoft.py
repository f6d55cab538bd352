"""PSOFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class Psoft(PeftMethod):
    """W0 + B (diag(b) Q diag(a) - I) A with B A the R strongest directions of W0, Q orthogonal.

    Attributes:
        rank: R of A (R, I), B (O, R) and Q (R, R), at most the smaller side of each layer.
    """

    name: ClassVar[str] = "psoft"
    title: ClassVar[str] = "PSOFT"
    source: ClassVar[str] = "Wu et al. 2025, 2505.11235"
    peft_class: ClassVar[str] = "PsoftConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "psoft_alpha"}
    capacity_field: ClassVar[str | None] = "rank"
    scaled: ClassVar[tuple[str, ...]] = ("psoft_R.weight", "psoft_R.default.weight")
    interpolated: ClassVar[tuple[str, ...]] = ("vector_a", "vector_b")
    scales_linearly: ClassVar[bool] = False

    rank: int = Field(default=32, ge=2)

    @property
    def alpha(self) -> int:
        """The rank, so that PEFT's scaling is one."""
        return self.rank

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The upper triangle of Q's generator, a and b."""
        return self.rank * (self.rank - 1) // 2 + 2 * self.rank

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """A and B, and the rows and columns of the upper triangle."""
        return self.rank * (outputs + inputs) + self.rank * (self.rank - 1)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x, and of Q what its inverse needs."""
        return Footprint(
            per_token=self.rank,
            per_layer=self.rank * (outputs + inputs) / 2 + 4.5 * self.rank**2,
            keeps_input=False,
        )
