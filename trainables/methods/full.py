"""Full fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from trainables.decoder_shape import ModelShape, parameters
from trainables.methods.base import LowRankLayout, Method


class Full(Method):
    """All parameters that text passes through are trained, sharded by DeepSpeed ZeRO."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "full fine-tuning"
    source: ClassVar[str] = "Rajbhandari et al. 2020 (ZeRO), 1910.02054"
    changes_base: ClassVar[bool] = True
    interpolated: ClassVar[tuple[str, ...]] = ("",)

    @property
    def scale(self) -> float | None:
        """One."""
        return 1.0

    @property
    def columns(self) -> dict[str, object]:
        """None."""
        return {}

    def parameters(self, shape: ModelShape) -> int:
        """All of the decoder's."""
        return parameters(shape)

    @property
    def packed(self) -> LowRankLayout | str:
        """Not: it changes the base."""
        return "full fine-tuning changes the base"
