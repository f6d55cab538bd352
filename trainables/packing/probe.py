"""Choosing the number of slots by measuring training speed on the trial's own samples.

A machine that others use is slower in one second than in the next, by more than a slot gains.
Hence each number of slots is compared with the one before pass by pass, in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from trainables.config import TrialConfig
from trainables.packing.engine import SlotEngine
from trainables.packing.planning import Speed, best
from trainables.process.out_of_memory import is_out_of_memory
from trainables.training.reporter import ListReporter

# Minimum total time and number of the repeated passes or pairs, of which the median counts.
_SECONDS = 0.25
_REPEATS = 4


def probe(
    engine: SlotEngine, trial: TrialConfig, most: int, passes: int, slot_seconds: float
) -> list[Speed]:
    """Measure 1, 2, 4, ... slots until more no longer pay off, do not fit, or are not wanted.

    `trial` is the largest expected, `most` the slots beyond which there is nothing to gain. No slot
    of the engine is busy before and after.

    Returns:
        The measurements, in order, for `best` to choose from; empty if not even one slot fits.
    """
    speeds: list[Speed] = []
    try:
        for count in sorted({*(1 << n for n in range(most.bit_length())), most}):
            while len(engine.slots) < count:
                # Trials of a sweep are at different steps, hence pad each other's samples.
                other = trial.model_copy(update={"seed": trial.seed + len(engine.slots)})
                engine.join(other, ListReporter())
            speeds.append(Speed(count, _passes_per_second(engine, count, speeds[-1:])))
            if len(speeds) > 2 and best(speeds, passes, slot_seconds) <= speeds[-3].slots:
                break  # twice in a row without a gain
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    finally:
        engine.clear()
    return speeds


def _passes_per_second(engine: SlotEngine, count: int, before: Sequence[Speed]) -> float:
    """Of `count` slots; by the gain over the number before, if there is one."""
    rounds = _timed(engine, [*(speed.slots for speed in before), count])
    if not before:
        return count / median(seconds for (seconds,) in rounds)
    (fewer,) = before
    gain = median(before_s / now_s for before_s, now_s in rounds) * count / fewer.slots
    return fewer.passes_per_second * gain


def _timed(engine: SlotEngine, counts: Sequence[int]) -> list[list[float]]:
    """Seconds of a pass of each number of slots, step by step, after one round for warm-up.

    The warm-up takes the longest samples, for the memory that they need. Every other round goes the
    other way, so that a machine that slows down favours none of them.
    """
    for count in counts:
        engine.time_pass(count, None)
    rounds: list[list[float]] = []
    while len(rounds) < _REPEATS or sum(map(sum, rounds)) < _SECONDS:
        step, order = len(rounds), counts if len(rounds) % 2 else counts[::-1]
        seconds = {count: engine.time_pass(count, step) for count in order}
        rounds.append([seconds[count] for count in counts])
    return rounds
