"""MiCA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.low_rank import LowRank


class Mica(LowRank):
    """A low-rank adapter W0 + s B A whose B is frozen: the last left singular vectors of W0."""

    name: ClassVar[str] = "mica"
    title: ClassVar[str] = "MiCA"
    source: ClassVar[str] = "Minor Component Adaptation, 2604.01694"
    peft_options: ClassVar[Mapping[str, Any]] = {"init_lora_weights": "mica"}
    takes_4bit: ClassVar[bool] = False
    scaled: ClassVar[tuple[str, ...]] = ("lora_A",)

    @property
    def packed(self) -> LowRankLayout | str:
        """Not."""
        return "its B is frozen, which slots train"

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R I of A."""
        return self.rank * inputs

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """R O of B."""
        return self.rank * outputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The layer's input alone, and with dropout the input after it and the mask."""
        dropped = inputs if self.dropout else 0
        return Footprint(per_token=dropped, mask=dropped)

    def misfit(self, shape: ModelShape) -> str | None:
        """A matrix has no more singular vectors than its shorter side."""
        shortest = min(min(size) for size in self._sizes(shape))
        return f"rank {self.rank} is above {shortest}" if self.rank > shortest else None
