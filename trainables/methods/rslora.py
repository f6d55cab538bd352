"""rsLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.methods.low_rank import LowRank


class RsLora(LowRank):
    """A low-rank adapter W0 + s B A with s = alpha / sqrt(rank)."""

    name: ClassVar[str] = "rslora"
    title: ClassVar[str] = "rsLoRA"
    source: ClassVar[str] = "Kalajdzievski 2023, 2312.03732"
    peft_options: ClassVar[Mapping[str, Any]] = {"use_rslora": True}

    @property
    def scaling(self) -> float:
        """Alpha / sqrt(rank), with which learning does not slow down as the rank rises."""
        return float(self.alpha / self.rank**0.5)
