"""LoHa."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.methods.base import Footprint
from trainables.methods.ranked import Scaled


class LoHa(Scaled):
    """W0 + s (B1 A1) * (B2 A2), the product of each two entries, whose rank is up to R^2."""

    name: ClassVar[str] = "loha"
    title: ClassVar[str] = "LoHa"
    source: ClassVar[str] = "Hyeon-Woo et al. 2021 (FedPara), 2108.06098"
    peft_class: ClassVar[str] = "LoHaConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "alpha"}
    scaled: ClassVar[tuple[str, ...]] = ("hada_w2_b",)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """2 R (O + I)."""
        return 2 * self.rank * (outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and the update."""
        return Footprint(matrices=outputs * inputs, brief=2 * outputs * inputs)

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """The dense product."""
        first_OI = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
        return self.scaling * first_OI * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])
