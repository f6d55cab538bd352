"""Super-Tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class SuperTuning(PeftMethod):
    """Trains the largest numbers of W0, wherever they are.

    Attributes:
        trained_percent: share of each layer's weights that is trained.
        largest: the largest by magnitude; otherwise the smallest.
    """

    name: ClassVar[str] = "supertuning"
    title: ClassVar[str] = "Super-Tuning"
    source: ClassVar[str] = "2607.09287"
    peft_class: ClassVar[str] = "SupertuningConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"sparsity": "sparsity", "largest": "select_top"}
    capacity_field: ClassVar[str | None] = "trained_percent"
    scaled: ClassVar[tuple[str, ...]] = ("supertuning_values",)

    trained_percent: int = Field(default=1, ge=1, le=100)
    largest: bool = True

    @property
    def sparsity(self) -> float:
        """The share that is not trained."""
        return 1 - self.trained_percent / 100

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """That share of the weights."""
        return int(outputs * inputs * (1 - self.sparsity))

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """Their places."""
        return self.layer_parameters(outputs, inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and W."""
        matrix = outputs * inputs
        trained = self.layer_parameters(outputs, inputs)
        return Footprint(
            per_layer=2 * trained, matrices=matrix, brief=matrix / 2, copies_input=False
        )
