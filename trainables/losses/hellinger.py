"""The loss of the squared Hellinger distance."""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.losses.ratio import Ratio


class Hellinger(Ratio):
    """Minimises -r / (1 + r), whose gradient vanishes as r grows."""

    name: ClassVar[str] = "hellinger"
    title: ClassVar[str] = "Hellinger"
    source: ClassVar[str] = "conjugate of the squared Hellinger distance"

    def phi(self, ratio_T: Any) -> Any:
        """R / (1 + r)."""
        return ratio_T / (1 + ratio_T)
