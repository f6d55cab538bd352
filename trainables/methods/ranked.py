"""`Ranked` and `Scaled`: methods of PEFT that have a rank, and also a factor alpha / rank."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field

from trainables.methods.base import Ratio
from trainables.methods.peft_method import PeftMethod


class Ranked(PeftMethod):
    """A method whose capacity is its rank R."""

    capacity_field: ClassVar[str | None] = "rank"

    rank: int = Field(ge=1)

    @property
    def smallest(self) -> Self:
        """Rank 1."""
        return self.model_copy(update={"rank": 1})


class Scaled(Ranked):
    """A method of rank R whose update has a factor s.

    Attributes:
        alpha: s = alpha / rank.
    """

    ratios: ClassVar[tuple[Ratio, ...]] = (Ratio("alpha_ratio", "alpha", "rank"),)
    label_fields: ClassVar[tuple[str, ...]] = ("alpha",)

    alpha: float = Field(gt=0)

    @property
    def scaling(self) -> float:
        """Factor s of the update."""
        return self.alpha / self.rank

    @property
    def scale(self) -> float | None:
        """The scaling."""
        return self.scaling

    @property
    def smallest(self) -> Self:
        """Rank and alpha 1."""
        return self.model_copy(update={"rank": 1, "alpha": 1.0})
