"""VB-LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint
from trainables.methods.peft_method import Sides
from trainables.methods.ranked import Ranked


class VbLora(Ranked):
    """W0 + B A whose parts are mixtures of the vectors of one bank, by a softmax over the top few.

    Attributes:
        rank: R of A (R, I) and B (O, R).
        vectors: number of vectors in the bank.
        vector_length: it must divide the inputs and outputs of each adapted layer.
        top: how many vectors are mixed.
    """

    name: ClassVar[str] = "vblora"
    title: ClassVar[str] = "VB-LoRA"
    source: ClassVar[str] = "Li et al. 2024, 2405.15179"
    peft_class: ClassVar[str] = "VBLoRAConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "vectors": "num_vectors",
        "vector_length": "vector_length",
        "top": "topk",
    }
    divides: ClassVar[Mapping[str, Sides]] = {"vector_length": "both"}
    starts_at_base: ClassVar[bool] = False
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("vblora_vector_bank",)
    scaled_degree: ClassVar[int] = 2

    rank: int = Field(default=4, ge=1)
    vectors: int = Field(default=256, ge=2)
    vector_length: int = Field(default=32, ge=1)
    top: int = Field(default=2, ge=1)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """A logit for each part and each vector."""
        return self.rank * (outputs + inputs) // self.vector_length * self.vectors

    def parameters(self, shape: ModelShape) -> int:
        """The logits and the bank."""
        return super().parameters(shape) + self.vectors * self.vector_length

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The input, A x, the factors and their parts."""
        factors = self.rank * (outputs + inputs)
        bank = self.vectors * self.vector_length
        return Footprint(
            per_token=self.rank, per_layer=2.2 * factors, matrices=factors, brief=2 * bank
        )
