"""DEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class Deft(Ranked):
    """(I - P f(P)^T) W0 + P C: removes directions from W0 and writes others in their place.

    Attributes:
        rank: R of P (O, R) and C (R, I), which at the start puts back what is removed.
        projection: `relu` has f = relu; `qr` has P orthonormal and f the identity.
    """

    name: ClassVar[str] = "deft"
    title: ClassVar[str] = "DEFT"
    source: ClassVar[str] = "Kumar et al. 2026, NeurIPS 38"
    peft_class: ClassVar[str] = "DeftConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "projection": "decomposition_method",
    }
    scaled: ClassVar[tuple[str, ...]] = ("deft_P", "deft_R")
    scaled_degree: ClassVar[int] = 2

    rank: int = Field(default=8, ge=1)
    projection: Literal["relu", "qr"] = "relu"

    @property
    def why_not_scaled(self) -> str | None:
        """The directions of `qr` have no length."""
        return "the directions of projection qr have no length" if self.projection == "qr" else None

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """P and C."""
        return min(self.rank, outputs) * (outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, the output, and both with the directions."""
        return Footprint(
            per_token=outputs + 2 * self.rank,
            per_layer=1.5 * self.rank * (outputs + inputs),
            brief_per_token=3 * outputs,
        )
