"""VeRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class VeRA(Ranked):
    """W0 + diag(b) B diag(d) A, with random A and B that all layers share and that stay frozen.

    Attributes:
        dropout: share of a layer's inputs that is dropped before A.
        initial_scale: each entry of d at the start, where b is 0.
    """

    name: ClassVar[str] = "vera"
    title: ClassVar[str] = "VeRA"
    source: ClassVar[str] = "Kopiczko et al. 2023, 2310.11454"
    peft_class: ClassVar[str] = "VeraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "dropout": "vera_dropout",
        "initial_scale": "d_initial",
    }
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("lambda_b",)

    dropout: float = Field(default=0.0, ge=0, lt=1)
    initial_scale: float = Field(default=0.1, gt=0)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """O of b and R of d."""
        return outputs + self.rank

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """A x, the output before b, and A and B in the base's dtype."""
        factors = self.rank * (outputs + inputs)
        return Footprint(per_token=outputs + self.rank, matrices=factors, keeps_input=False)

    def frozen_parameters(self, shape: ModelShape) -> int:
        """A and B, as large as the largest layer needs them."""
        sizes = self._sizes(shape)
        return self.rank * (max(rows for rows, _ in sizes) + max(columns for _, columns in sizes))
