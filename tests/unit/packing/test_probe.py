"""What the probe makes of a GPU that holds more than is in use, of a busy machine, of no gain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import trial_config

from trainables.packing.planning import best
from trainables.packing.probe import probe

_BASE, _SLOT = 10, 5


class Gpu:
    """Its allocator keeps what the base's evaluation has freed until told to give it back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, of_others: int = 0) -> None:
        self.used, self.reserved, self.peak = _BASE, 40, 40
        for name, answer in {
            "is_available": lambda: True,
            "mem_get_info": lambda: (100 - self.reserved - of_others, 100),
            "memory_reserved": lambda: self.reserved,
            "max_memory_reserved": lambda: self.peak,
            "empty_cache": lambda: self.reserve(self.used),
            "reset_peak_memory_stats": lambda: setattr(self, "peak", self.reserved),
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def reserve(self, amount: int) -> None:
        self.reserved = amount
        self.peak = max(self.peak, amount)


class Engine:
    def __init__(self, gpu: Gpu) -> None:
        self.slots: list[Any] = []
        self._gpu = gpu

    def join(self, *_: Any) -> None:
        self.slots.append(None)
        self._gpu.used += _SLOT

    def typical_step(self, count: int) -> int:
        return 0

    def time_pass(self, count: int, step: int | None) -> float:
        if step is None:  # the longest samples alone take what a slot takes at most
            self._gpu.reserve(max(self._gpu.reserved, self._gpu.used))
        return 1.0

    def clear(self) -> None:
        self.slots.clear()


def test_a_slot_s_memory_is_not_hidden_by_what_the_base_s_evaluation_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine: Any = Engine(Gpu(monkeypatch))
    speeds = probe(engine, trial_config(), most=4, passes=1, slot_seconds=0.0)
    assert [(s.slots, s.peak_bytes) for s in speeds] == [
        (count, _BASE + count * _SLOT) for count in (1, 2, 4)
    ]


def test_of_a_gpu_that_hosts_share_each_counts_on_its_own_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def most(gpus: float, of_others: int = 0) -> int:
        engine: Any = Engine(Gpu(monkeypatch, of_others))
        trial = trial_config().model_copy(update={"gpus_per_worker": gpus})
        speeds = probe(engine, trial, most=64, passes=10**6, slot_seconds=0.0)
        return speeds[-1].slots

    assert most(1.0) == 16
    assert most(0.5) == 4
    assert most(1.0, of_others=50) == 4


class Shared:
    """An engine on a machine that others slow down by half, more and more often."""

    def __init__(self) -> None:
        self.slots: list[Any] = []
        self.passes = 0

    def join(self, *_: Any) -> None:
        self.slots.append(None)

    def typical_step(self, count: int) -> int:
        return 0

    def time_pass(self, count: int, step: int | None) -> float:
        self.passes += 1
        others = 1.0 + min(1.0, self.passes / 20)
        return 0.1 * (1 + 0.25 * count) * others

    def clear(self) -> None:
        self.slots.clear()


def test_what_others_do_on_the_machine_does_not_hide_what_a_slot_gains() -> None:
    engine: Any = Shared()
    speeds = probe(engine, trial_config(), most=8, passes=1000, slot_seconds=0.0)
    alone = {count: count / (0.1 * (1 + 0.25 * count)) for count in (1, 2, 4, 8)}
    first = speeds[0].passes_per_second / alone[1]
    for speed in speeds:
        expected = first * alone[speed.slots]
        assert speed.passes_per_second == pytest.approx(expected, rel=0.05)
    assert best(speeds, passes=1000, slot_seconds=0.0) == 8


class Undisturbed(Shared):
    """An engine whose pass takes so many seconds by number of slots."""

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__()
        self._seconds = seconds

    def time_pass(self, count: int, step: int | None) -> float:
        return self._seconds[count]


@pytest.mark.parametrize(
    ("seconds", "slot_seconds", "measured"),
    [
        ({1: 1.0}, 1e6, [1]),  # what they take to start cannot be made up for
        ({1: 1.0, 2: 2.0, 4: 4.0}, 0.0, [1, 2, 4]),  # twice without a gain
        ({1: 1.0, 2: 1.0, 4: 2.0, 8: 1.0}, 0.0, [1, 2, 4, 8]),  # once
    ],
)
def test_it_ends_where_more_slots_do_not_pay(
    seconds: dict[int, float], slot_seconds: float, measured: list[int]
) -> None:
    """Each number that it measures is time in which no trial trains."""
    engine: Any = Undisturbed(seconds)
    speeds = probe(engine, trial_config(), most=8, passes=1000, slot_seconds=slot_seconds)
    assert [speed.slots for speed in speeds] == measured


def test_an_error_that_is_not_of_memory_is_told() -> None:
    """And not taken for the end of what fits, with which trials would train on."""
    engine: Any = Undisturbed({1: 1.0})
    with pytest.raises(KeyError):
        probe(engine, trial_config(), most=2, passes=1000, slot_seconds=0.0)
    assert engine.slots == []
