"""Choosing the number of slots by measuring training speed on the trial's own batches."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import torch

from trainables.config import TrialConfig
from trainables.process.out_of_memory import free_memory, is_out_of_memory
from trainables.slots.engine import SlotEngine
from trainables.slots.speed import Speed, best
from trainables.training.reporter import ListReporter
from trainables.training.reports import peak_bytes

# Minimum total time and number of the repeated passes, of which the fastest counts.
_SECONDS = 0.25
_PASSES = 2
_SHARE_OF_MEMORY = 0.8


def probe(
    engine: SlotEngine, trial: TrialConfig, most: int, passes: int, slot_seconds: float
) -> list[Speed]:
    """Measure 1, 2, 4, ... slots until more no longer pay off, do not fit, or are not wanted.

    Args:
        engine: without busy slots, before and after.
        trial: the largest expected trial.
        most: slots beyond which there is nothing to gain.
        passes: micro-batches to be trained in total.
        slot_seconds: one-off cost of one more slot.

    Returns:
        The measurements, in order, for `best` to choose from; empty if not even one slot fits.
    """
    speeds: list[Speed] = []
    if torch.cuda.is_available():  # the base's evaluation may have taken more, and still hold it
        free_memory()
        torch.cuda.reset_peak_memory_stats()
    try:
        for count in _doublings(most):
            if _would_not_fit(speeds):
                break
            while len(engine.slots) < count:
                engine.join(trial, ListReporter())
            speeds.append(Speed(count, count / _seconds_of_a_pass(engine), peak_bytes()))
            if len(speeds) > 2 and best(speeds, passes, slot_seconds) <= speeds[-3].slots:
                break  # twice in a row without a gain
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    finally:
        engine.clear()
    return speeds


def _doublings(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _seconds_of_a_pass(engine: SlotEngine) -> float:
    """The fastest of several passes, after one for warm-up."""
    engine.time_pass()
    seconds: list[float] = []
    while len(seconds) < _PASSES or sum(seconds) < _SECONDS:
        seconds.append(engine.time_pass())
    return min(seconds)


def _would_not_fit(speeds: list[Speed]) -> bool:
    """Whether doubling the slots, each at the last ones' cost, would exceed the free memory."""
    if len(speeds) < 2:
        return False
    before, last = speeds[-2:]
    each = (last.peak_bytes - before.peak_bytes) / (last.slots - before.slots)
    return each * last.slots > _SHARE_OF_MEMORY * _free_bytes()


def _free_bytes() -> int:
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    return int(psutil.virtual_memory().available)
