"""Which trials can be packed, and how many slots are fastest. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from trainables.config import TrialConfig

# Doubling must pay off: its cost in each trial's latency is certain, its gain only measured.
_LEAST_GAIN = 1.05


def why_not_packed(trial: TrialConfig) -> str | None:
    """Why a trial must train alone; None if it can have a slot."""
    if isinstance(trial.method.packed, str):
        return trial.method.packed
    if trial.workers > 1:
        return f"resources.{trial.recipe}.workers is above 1"
    return None


def is_packed(trial: TrialConfig, recipes: Collection[str]) -> bool:
    """Whether a trial trains in a slot, where these recipes' trials do."""
    return trial.recipe in recipes and why_not_packed(trial) is None


@dataclass(frozen=True)
class Speed:
    """How many micro-batches per second a number of busy slots train, all together."""

    slots: int
    passes_per_second: float


def best(speeds: Sequence[Speed], passes: int, slot_seconds: float) -> int:
    """The number of slots with which a host's trials finish first.

    seconds = passes / passes_per_second + slots x slot_seconds

    That is the first that no larger one beats by enough, of `speeds` by increasing slots. `passes`
    are all trials' micro-batches together; starting a slot's process takes `slot_seconds`.
    """

    def seconds(speed: Speed) -> float:
        return passes / speed.passes_per_second + speed.slots * slot_seconds

    chosen = speeds[0]
    for speed in speeds[1:]:
        if seconds(chosen) > _LEAST_GAIN * seconds(speed):
            chosen = speed
    return chosen.slots
