"""FourierFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class FourierFt(PeftMethod):
    """W0 + s Re(IDFT(C)): an update that is sparse in Fourier space, in places drawn once.

    Attributes:
        frequencies: number of coefficients that are trained in each layer; zero at the start.
        scaling: s.
    """

    name: ClassVar[str] = "fourierft"
    title: ClassVar[str] = "FourierFT"
    source: ClassVar[str] = "Gao et al. 2024, 2405.03003"
    peft_class: ClassVar[str] = "FourierFTConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "frequencies": "n_frequency",
        "scaling": "scaling",
    }
    peft_options: ClassVar[Mapping[str, Any]] = {"init_weights": True}
    capacity_field: ClassVar[str | None] = "frequencies"
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("fourierft_spectrum",)

    frequencies: int = Field(default=1000, ge=1)
    scaling: float = Field(default=150.0, gt=0)

    @property
    def scale(self) -> float | None:
        """The scaling."""
        return self.scaling

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The coefficients."""
        return self.frequencies

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """Their rows and columns."""
        return 2 * self.frequencies

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and the update."""
        return Footprint(matrices=outputs * inputs, brief=4 * outputs * inputs)
