"""MiSS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class MiSS(Ranked):
    """W0 + [D D ... D]: one block D of R columns is added to every R columns of W0.

    Attributes:
        dropout: share of a layer's inputs that is dropped.
    """

    name: ClassVar[str] = "miss"
    title: ClassVar[str] = "MiSS"
    source: ClassVar[str] = "Kang and Yin 2024, 2409.15371"
    peft_class: ClassVar[str] = "MissConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r", "dropout": "miss_dropout"}
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("miss_block",)

    dropout: float = Field(default=0.0, ge=0, lt=1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R O."""
        return self.rank * outputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The sum of the input's pieces of R."""
        return Footprint(per_token=self.rank, brief_per_token=inputs, keeps_input=False)

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """D, and ones that repeat it."""
        D_OR = tensors["miss_block"].T
        inputs, rank = base_OI.shape[1], D_OR.shape[1]
        repeats_RI = base_OI.new_ones(rank).diag().repeat(1, -(-inputs // rank))[:, :inputs]
        return D_OR, repeats_RI
