"""RandLoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint
from trainables.methods.ranked import Scaled


class RandLoRA(Scaled):
    """W0 + s sum_n B_n L_n A G_n: products of rank R that together have full rank.

    A and all B_n are random, shared by all layers and frozen; the diagonals L_n and G_n are
    trained, and there are the more of them the smaller R is.

    Attributes:
        dropout: share of a layer's inputs that is dropped.
    """

    name: ClassVar[str] = "randlora"
    title: ClassVar[str] = "RandLoRA"
    source: ClassVar[str] = "Albert et al. 2025, 2502.00987"
    peft_class: ClassVar[str] = "RandLoraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "randlora_alpha",
        "dropout": "randlora_dropout",
    }
    capacity_falls: ClassVar[bool] = True
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("randlora_lambda",)

    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def smallest(self) -> Self:
        """Itself, as a smaller rank has more parameters."""
        return self

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """Of each of the min(O, I) / R products R in L_n and min(O, I) in G_n."""
        least = min(outputs, inputs)
        return math.ceil(least / self.rank) * (self.rank + least)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """What L and G are applied to, and all products in the base's dtype."""
        least = min(outputs, inputs)
        rows = math.ceil(least / self.rank) * self.rank
        return Footprint(
            per_token=rows if inputs > outputs else 0,
            matrices=rows * (outputs + inputs),
            brief=2 * rows * least,
            keeps_input=inputs <= outputs,
        )

    def frozen_parameters(self, shape: ModelShape) -> int:
        """A and all B_n, as large as the largest layer needs them."""
        sizes = self._sizes(shape)
        least, most = sorted((max(rows for rows, _ in sizes), max(columns for _, columns in sizes)))
        return self.rank * (least + math.ceil(least / self.rank) * most)
