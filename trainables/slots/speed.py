"""What a probe measures, and the choice it leads to. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A doubling must pay: what it adds to every trial's latency is certain, its gain is measured.
_LEAST_GAIN = 1.05


@dataclass(frozen=True)
class Speed:
    """How fast so many busy slots train, and the memory that takes.

    Attributes:
        passes_per_second: micro-batches a second, over all slots.
        peak_bytes: of the process, or of its GPU.
    """

    slots: int
    passes_per_second: float
    peak_bytes: int


def best(speeds: Sequence[Speed]) -> int:
    """The number of slots to use: the first that no larger one beats by enough."""
    chosen = speeds[0]
    for speed in speeds[1:]:
        if speed.passes_per_second > _LEAST_GAIN * chosen.passes_per_second:
            chosen = speed
    return chosen.slots
