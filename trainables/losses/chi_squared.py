"""The loss of the chi-squared divergence."""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.losses.ratio import Ratio


class ChiSquared(Ratio):
    """Minimises r^2 / 4 - r, which is least at twice the base's probability."""

    name: ClassVar[str] = "chi_squared"
    title: ClassVar[str] = "chi-squared"
    source: ClassVar[str] = "conjugate of the chi-squared divergence"

    def phi(self, ratio_T: Any) -> Any:
        """R - r^2 / 4."""
        return ratio_T - ratio_T.square() / 4
