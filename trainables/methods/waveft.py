"""WaveFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class WaveFt(PeftMethod):
    """W0 + s IDWT(C): an update that is sparse in a wavelet basis, in places drawn once.

    Attributes:
        frequencies: number of coefficients that are trained in each layer.
        scaling: s.
        wavelet: the basis; `db1` is Haar's.
    """

    name: ClassVar[str] = "waveft"
    title: ClassVar[str] = "WaveFT"
    source: ClassVar[str] = "Bilican et al. 2025, 2505.12532"
    peft_class: ClassVar[str] = "WaveFTConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "frequencies": "n_frequency",
        "scaling": "scaling",
        "wavelet": "wavelet_family",
    }
    capacity_field: ClassVar[str | None] = "frequencies"
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("waveft_spectrum",)

    frequencies: int = Field(default=2592, ge=1)
    scaling: float = Field(default=25.0, gt=0)
    wavelet: str = "db1"

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
        """The input, the update, and its transform."""
        matrix = outputs * inputs
        return Footprint(
            per_layer=4 * self.frequencies,
            matrices=2 * matrix,
            brief=2 * matrix,
            copies_input=False,
        )
