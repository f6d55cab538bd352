"""GraLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trainables.methods.base import Footprint
from trainables.methods.peft_method import Sides
from trainables.methods.ranked import Scaled


class GraLoRA(Scaled):
    """W0 cut into K x K blocks, each with a low-rank adapter of rank R / K, so R K in all.

    Attributes:
        blocks: K, which divides the rank and all outputs and inputs.
        dropout: share of a layer's inputs that is dropped.
    """

    name: ClassVar[str] = "gralora"
    title: ClassVar[str] = "GraLoRA"
    source: ClassVar[str] = "Jung et al. 2025, 2505.20355"
    peft_class: ClassVar[str] = "GraloraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "alpha",
        "blocks": "gralora_k",
        "dropout": "gralora_dropout",
    }
    divides: ClassVar[Mapping[str, Sides]] = {"blocks": "both"}
    scaled: ClassVar[tuple[str, ...]] = ("gralora_B",)

    blocks: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _rank_is_divided(self) -> Self:
        if self.rank % self.blocks:
            raise ValueError(f"rank must be a multiple of blocks, {self.blocks}, got {self.rank}")
        return self

    @property
    def smallest(self) -> Self:
        """Rank 1 in each block."""
        return self.model_copy(update={"rank": self.blocks, "alpha": 1.0})

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """R (O + I)."""
        return self.rank * (outputs + inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input and A x of each block."""
        return Footprint(per_token=2 * self.rank * self.blocks)

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """Block (q, n) of dW from columns q of A_n and rows n of B_q."""
        import torch

        K = self.blocks
        A_KiKr = tensors["gralora_A"].unflatten(2, (K, -1))
        B_KKro = tensors["gralora_B"].unflatten(1, (K, -1))
        blocks_KoKi = torch.einsum("niqr,qnro->qoni", A_KiKr, B_KKro)
        return self.scaling * blocks_KoKi.reshape(base_OI.shape)
