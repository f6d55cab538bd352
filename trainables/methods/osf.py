"""OSF."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint
from trainables.methods.peft_method import PeftMethod


class Osf(PeftMethod):
    """Trains the lower end of W0 = U S V^T, with gradients orthogonal to the upper end.

    Attributes:
        preserved_percent: share of the singular directions, strongest first, that stays as it is;
            more is fewer parameters.
    """

    name: ClassVar[str] = "osf"
    title: ClassVar[str] = "OSF"
    source: ClassVar[str] = "Nayak et al. 2025, 2504.07097"
    peft_class: ClassVar[str] = "OSFConfig"
    capacity_field: ClassVar[str | None] = "preserved_percent"
    capacity_falls: ClassVar[bool] = True
    interpolated: ClassVar[tuple[str, ...]] = ("U_low", "S_low", "V_low")
    scales_linearly: ClassVar[bool] = False

    preserved_percent: int = Field(default=50, ge=1, lt=100)

    def peft_config(self, steps: int) -> Any:
        """With the share as a fraction."""
        config = super().peft_config(steps)
        config.effective_rank = self.preserved_percent / 100
        return config

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The lower end of U, S and V."""
        return self._trained(outputs, inputs) * (outputs + inputs + 1)

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """The same as it was at the start, and the upper end of the longer of U and V."""
        kept = min(outputs, inputs) - self._trained(outputs, inputs)
        upper = kept * max(outputs, inputs) if outputs != inputs else 0
        return self.layer_parameters(outputs, inputs) + upper

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, and the factors of the lower end, now and at the start."""
        trained = self._trained(outputs, inputs)
        factors = trained * (outputs + inputs)
        return Footprint(per_token=2 * trained, matrices=2 * factors, brief=3 * factors)

    def _trained(self, outputs: int, inputs: int) -> int:
        """How many directions are trained."""
        rank = min(outputs, inputs)
        return rank - int(rank * (self.preserved_percent / 100))
