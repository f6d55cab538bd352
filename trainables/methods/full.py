"""Full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.decoder_shape import ModelShape, parameters
from trainables.methods.base import LowRankLayout, Method


class Full(Method):
    """All parameters that text passes through are trained, sharded by DeepSpeed ZeRO."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "full fine-tuning"
    source: ClassVar[str] = "Rajbhandari et al. 2020 (ZeRO), 1910.02054"
    changes_base: ClassVar[bool] = True

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
    def why_not_scaled(self) -> str | None:
        """None."""
        return None

    @property
    def needs_start(self) -> bool:
        """The base's weights."""
        return True

    def at_strength(
        self, tensors: Mapping[str, Any], start: Mapping[str, Any], strength: float
    ) -> dict[str, Any]:
        """Interpolation of the weights, number by number (WiSE-FT, 2109.01903)."""
        return {
            name: start[name].float().lerp(values.float(), strength).to(values.dtype)
            for name, values in tensors.items()
        }

    @property
    def packed(self) -> LowRankLayout | str:
        """Not: it changes the base."""
        return "full fine-tuning changes the base"
