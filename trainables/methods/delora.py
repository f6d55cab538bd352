"""DeLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class DeLora(Ranked):
    """W0 + (b / R) B N A diag(w): N normalises B's columns and A's rows, w_j = |W0[:, j]|.

    Attributes:
        rank: R of A (R, I) and B (O, R).
        boundary: b, trained, at the start; the strength of the update.
    """

    name: ClassVar[str] = "delora"
    title: ClassVar[str] = "DeLoRA"
    source: ClassVar[str] = "Bini et al. 2025, 2503.18225"
    peft_class: ClassVar[str] = "DeloraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r", "boundary": "delora_lambda"}
    scaled: ClassVar[tuple[str, ...]] = ("delora_lambda",)

    rank: int = Field(default=8, ge=1)
    boundary: float = Field(default=15.0, gt=0)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I), and b."""
        return self.rank * (outputs + inputs) + 1

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """The norms w."""
        return inputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, and A x before and after its scale."""
        factors = self.rank * (outputs + inputs)
        return Footprint(per_token=2 * self.rank, per_layer=factors / 2, brief=factors)
