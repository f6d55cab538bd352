"""SHiRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class SHiRA(Ranked):
    """W0 with a few entries trained, drawn at random: as many as a LoRA of rank R has."""

    name: ClassVar[str] = "shira"
    title: ClassVar[str] = "SHiRA"
    source: ClassVar[str] = "Bhardwaj et al. 2024, 2406.13175"
    peft_class: ClassVar[str] = "ShiraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("shira_weight",)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I)."""
        return self.rank * (outputs + inputs)

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """Row and column of each trained entry."""
        return 2 * self.layer_parameters(outputs, inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, W, and where its trained entries are."""
        places = 4 * self.layer_parameters(outputs, inputs)
        return Footprint(
            per_layer=places,
            matrices=outputs * inputs,
            brief=outputs * inputs,
            copies_input=False,
        )

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """The trained entries among zeros."""
        dense_OI = base_OI.new_zeros(base_OI.shape)
        dense_OI[tuple(tensors["shira_indices"].long())] = tensors["shira_weight"]
        return dense_OI
