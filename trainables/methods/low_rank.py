"""`LowRank`: methods that train W0 + s B A through PEFT's LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainables.methods.base import Footprint, LowRankLayout
from trainables.methods.ranked import Scaled


class LowRank(Scaled):
    """A low-rank adapter W0 + s B A (Hu et al. 2021, 2106.09685).

    Attributes:
        dropout: share of a layer's inputs that is dropped before A.
    """

    peft_class: ClassVar[str] = "LoraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
    }
    takes_4bit: ClassVar[bool] = True
    served_by_vllm: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("lora_B",)

    dropout: float = Field(default=0.0, ge=0, lt=1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I)."""
        return self.rank * (outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x for each token, and with dropout the input and its mask."""
        dropped = inputs if self.dropout else 0
        return Footprint(per_token=self.rank + dropped, mask=dropped)

    @property
    def packed(self) -> LowRankLayout | str:
        """As rows of one matrix with others of equal rank."""
        return LowRankLayout(self.rank, self.scaling, self.dropout)

    @property
    def why_not_repaired(self) -> str | None:
        """Only what trains more than A and B is not."""
        return f"{self.title} has norms beside its factors" if self.needs_start else None

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """The factors s B and A."""
        return tensors["lora_B.weight"] * self.scaling, tensors["lora_A.weight"]


def dora_update(tensors: Mapping[str, Any], base_OI: Any, scaling: float) -> Any:
    """DoRA's dense update (O, I) (2402.09353, eq. 5), where each output has a trained norm m.

    dW = m (W0 + s B A) / norm(W0 + s B A) - W0
    """
    import torch

    norm_O = tensors["lora_magnitude_vector"].flatten()
    B_OR, A_RI = tensors["lora_B.weight"] * scaling, tensors["lora_A.weight"]
    tuned_OI = torch.addmm(base_OI, B_OR, A_RI)
    tuned_OI *= (norm_O / tuned_OI.norm(dim=1))[:, None]
    return tuned_OI.sub_(base_OI)
