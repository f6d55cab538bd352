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


def best(speeds: Sequence[Speed], passes: int, slot_seconds: float) -> int:
    """The number of slots with which a host's trials are done first.

    seconds = passes / passes_per_second + slots x slot_seconds

    Args:
        speeds: of ever more slots.
        passes: micro-batches that the host's trials have altogether.
        slot_seconds: what one more slot costs at once: the start of its trial's process.

    Returns:
        The first that no larger one beats by enough.
    """

    def seconds(speed: Speed) -> float:
        return passes / speed.passes_per_second + speed.slots * slot_seconds

    chosen = speeds[0]
    for speed in speeds[1:]:
        if seconds(chosen) > _LEAST_GAIN * seconds(speed):
            chosen = speed
    return chosen.slots
