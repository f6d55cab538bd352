"""LoRA+."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from trainables.methods.low_rank import LowRank


class LoraPlus(LowRank):
    """A low-rank adapter W0 + s B A whose B learns faster than A.

    Attributes:
        rate_ratio: B's learning rate as a multiple of A's, which is the trial's.
    """

    name: ClassVar[str] = "loraplus"
    title: ClassVar[str] = "LoRA+"
    source: ClassVar[str] = "Hayou et al. 2024, 2402.12354"
    label_fields: ClassVar[tuple[str, ...]] = ("alpha", "rate_ratio")

    rate_ratio: float = Field(default=16.0, gt=0)

    def rate(self, parameter: str) -> float:
        """The ratio for B, 1 for A."""
        return self.rate_ratio if ".lora_B." in parameter else 1.0
