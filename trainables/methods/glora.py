"""GLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class GLora(Ranked):
    """W0 * (1 + A) + B, elementwise, A and B of low rank; without the paper's terms for biases.

    Attributes:
        rank: of A and B.
    """

    name: ClassVar[str] = "glora"
    title: ClassVar[str] = "GLoRA"
    source: ClassVar[str] = "Chavan et al. 2023, 2306.07967"
    peft_class: ClassVar[str] = "GloraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r"}
    peft_options: ClassVar[Mapping[str, Any]] = {"config_C": "none", "config_D_E": "none"}
    scaled: ClassVar[tuple[str, ...]] = ("Xd",)

    rank: int = Field(default=8, ge=1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """Two factors each of A and B."""
        return 2 * self.rank * (outputs + inputs)

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """Zeros in place of the other terms."""
        return inputs + 2 * outputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and W."""
        matrix = outputs * inputs
        return Footprint(
            per_layer=self.rank * (outputs + inputs),
            matrices=matrix,
            brief=matrix,
            copies_input=False,
        )
