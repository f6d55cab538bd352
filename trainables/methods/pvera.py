"""PVeRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Footprint
from trainables.methods.ranked import Ranked


class PVera(Ranked):
    """VeRA with a random latent: W0 x + b * B (m + e exp(v / 2)), (m, v) = d * A x, e normal.

    A and B are random, frozen and shared by all layers; outside training e is zero.

    Attributes:
        rank: R of A (2 R, I) and B (O, R).
        initial_d: d at the start, where b is zero.
    """

    name: ClassVar[str] = "pvera"
    title: ClassVar[str] = "PVeRA"
    source: ClassVar[str] = "Fillioux et al. 2025, 2512.07703"
    peft_class: ClassVar[str] = "PveraConfig"
    peft_fields: ClassVar[Mapping[str, str]] = {"rank": "r", "initial_d": "d_initial"}
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("lambda_b",)

    rank: int = Field(default=256, ge=1)
    initial_d: float = Field(default=0.1, gt=0)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The vectors b and d."""
        return outputs + 2 * self.rank

    def frozen_parameters(self, shape: ModelShape) -> int:
        """A and B, as large as the largest layers."""
        sizes = self._sizes(shape)
        outputs, inputs = max(size[0] for size in sizes), max(size[1] for size in sizes)
        return self.rank * (outputs + 2 * inputs)

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The latent and the output, and A and B in the base's dtype."""
        return Footprint(
            per_token=outputs + 2 * self.rank,
            per_token_fp32=2 * self.rank,
            per_layer=self.rank * (outputs + 2 * inputs) / 2,
            keeps_input=False,
        )
