"""LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.low_rank import LowRank, dora_update


class Lora(LowRank):
    """A low-rank adapter W0 + s B A.

    Attributes:
        rslora: scale by alpha / sqrt(rank) instead of alpha / rank (2312.03732).
        dora: decompose magnitude and direction (2402.09353).
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al. 2021, 2106.09685"
    peft_fields: ClassVar[Mapping[str, str]] = {
        **LowRank.peft_fields,
        "rslora": "use_rslora",
        "dora": "use_dora",
    }

    interpolated: ClassVar[tuple[str, ...]] = ("lora_magnitude_vector",)

    rslora: bool = False
    dora: bool = False

    @property
    def scaling(self) -> float:
        """Alpha / rank, or alpha / sqrt(rank) under rsLoRA."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def packed(self) -> LowRankLayout | str:
        """As any low-rank adapter; not under DoRA."""
        return "DoRA's norms are not batched" if self.dora else super().packed

    @property
    def needs_start(self) -> bool:
        """The magnitudes of DoRA do."""
        return self.dora

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I), and under DoRA a norm for each output."""
        return super().layer_parameters(outputs, inputs) + (outputs if self.dora else 0)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """As any low-rank adapter; unknown under DoRA."""
        return None if self.dora else super().footprint(outputs, inputs)

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """The factors, or DoRA's dense update."""
        if self.dora:
            return dora_update(tensors, base_OI, self.scaling)
        return super().stored_update(tensors, base_OI)
