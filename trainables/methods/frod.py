"""FRoD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.peft_method import PeftMethod


class Frod(PeftMethod):
    """W = U (diag(l) + S) V^T with V shared by the layers of a name, S sparse, l and S trained.

    Attributes:
        density_percent: share of S's numbers that is trained, in places drawn once.
    """

    name: ClassVar[str] = "frod"
    title: ClassVar[str] = "FRoD"
    source: ClassVar[str] = "Wan et al. 2026, 2512.23485"
    peft_class: ClassVar[str] = "FrodConfig"
    peft_options: ClassVar[Mapping[str, Any]] = {"progressbar": False}
    capacity_field: ClassVar[str | None] = "density_percent"
    interpolated: ClassVar[tuple[str, ...]] = ("frod_lambda",)

    density_percent: int = Field(default=1, ge=1, le=100)

    def peft_config(self, steps: int) -> Any:
        """With the density as a fraction."""
        config = super().peft_config(steps)
        config.sparse_rate = self.density_percent / 100
        return config

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """l, and the numbers of S."""
        return inputs + self._entries(inputs)

    def frozen_parameters(self, shape: ModelShape) -> int:
        """U of each layer; for each name V, and the places in S and its size."""
        sizes = self._sizes(shape)
        shared = sum(inputs**2 + 2 * self._entries(inputs) + 2 for _, inputs in sizes)
        return shape.layers * sum(outputs * inputs for outputs, inputs in sizes) + shared

    def _entries(self, inputs: int) -> int:
        """How many numbers of S are trained."""
        return min(int(inputs**2 * (self.density_percent / 100)), inputs**2 - inputs)
