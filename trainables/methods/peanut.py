"""PEANuT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class Peanut(Ranked):
    """W0 + s f(W0), f a small network from each input's column of W0 to its column of the update.

    Attributes:
        rank: width of f's hidden layers.
        depth: pairs of hidden layers, with residual connections.
        activation: between the layers.
        scaling: s.
    """

    name: ClassVar[str] = "peanut"
    title: ClassVar[str] = "PEANuT"
    source: ClassVar[str] = "Zhong et al. 2024, 2410.01870"
    peft_class: ClassVar[str] = "PeanutConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "depth": "depth",
        "activation": "act_fn",
        "scaling": "scaling",
    }
    scaled: ClassVar[tuple[str, ...]] = ("peanut_B",)

    rank: int = Field(default=32, ge=1)
    depth: int = Field(default=0, ge=0)
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    scaling: float = Field(default=1.0, gt=0)

    @property
    def scale(self) -> float | None:
        """The scaling."""
        return self.scaling

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The layers of f."""
        return 2 * self.rank * outputs + 2 * self.depth * self.rank**2

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, W0 as the network reads it, the update, and hidden layers."""
        matrix, hidden = outputs * inputs, self.rank * (outputs + inputs)
        return Footprint(
            per_layer=matrix + hidden / 2 + 2 * self.depth * self.rank * inputs,
            brief=1.75 * matrix,
            copies_input=False,
        )
