"""How many slots the probe finds: on a busy machine, without a gain, and where memory ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import trial_config

from trainables.packing.planning import best
from trainables.packing.probe import probe


class Engine:
    """An engine whose pass takes so many seconds by number of slots; others fail with `error`."""

    def __init__(self, seconds: dict[int, float], error: type[Exception] = KeyError) -> None:
        self.slots: list[Any] = []
        self._seconds, self._error, self._passes = seconds, error, 0

    def join(self, *_: Any) -> None:
        self.slots.append(None)

    def time_pass(self, count: int, step: int | None) -> float:
        if count not in self._seconds:
            raise self._error
        self._passes += 1
        others = 1.0 + min(1.0, self._passes / 20)  # slow the machine down by half in the end
        return self._seconds[count] * others

    def clear(self) -> None:
        self.slots.clear()


@pytest.mark.parametrize(
    ("seconds", "measured", "fastest"),
    [
        ({1: 0.125, 2: 0.15, 4: 0.2, 8: 0.3}, [1, 2, 4, 8], 8),
        ({1: 1.0, 2: 2.0, 4: 4.0}, [1, 2, 4], 1),  # twice without a gain
        ({1: 1.0, 2: 1.0}, [1, 2], 2),  # then memory runs out
        ({}, [], None),
    ],
)
def test_it_measures_until_more_slots_do_not_pay_or_fit(
    seconds: dict[int, float], measured: list[int], fastest: int | None
) -> None:
    engine: Any = Engine(seconds, torch.OutOfMemoryError)
    speeds = probe(engine, trial_config(), most=8, passes=1000, slot_seconds=0.0)
    assert [speed.slots for speed in speeds] == measured
    assert engine.slots == []
    for speed in speeds:  # the first one's speed depends on the others on the machine
        gain = speed.slots * seconds[1] / seconds[speed.slots]
        expected = speeds[0].passes_per_second * gain
        assert speed.passes_per_second == pytest.approx(expected, rel=0.05)
    if speeds:
        assert best(speeds, passes=1000, slot_seconds=0.0) == fastest
