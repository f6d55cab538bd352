"""HiRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class HiRA(Ranked):
    """W0 * (1 + B A), the product of each two entries, whose rank is not bounded by R.

    Attributes:
        dropout: share of a layer's inputs that is dropped.
    """

    name: ClassVar[str] = "hira"
    title: ClassVar[str] = "HiRA"
    source: ClassVar[str] = "Huang et al. 2025, openreview TwJrTz9cRS"
    peft_class: ClassVar[str] = "HiraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r", "dropout": "hira_dropout"}
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("hira_B",)

    dropout: float = Field(default=0.0, ge=0, lt=1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I)."""
        return self.rank * (outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and the update."""
        return Footprint(matrices=outputs * inputs, brief=outputs * inputs)

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """W0 * B A."""
        return base_OI * (tensors["hira_B"] @ tensors["hira_A"])
