"""What the benchmarks of the search share: workers in virtual time, and intervals."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np


def run_side_by_side(
    workers: int,
    budget: int,
    seed: int,
    start: Callable[[int], bool],
    advance: Callable[[int], tuple[int, bool]],
) -> int:
    """Run trials on workers until the budget is spent; returns how many were started.

    Args:
        workers: trials at a time; where one ends the next starts.
        budget: steps of all trials together.
        seed: of the trials' paces.
        start: starts the trial of this number; False where there are no more.
        advance: takes it to its next report; returns the steps that took and whether it has ended.
    """
    queue: list[tuple[float, int]] = []
    spent = started = 0

    def start_one(now: float) -> None:
        nonlocal started
        if start(started):
            heapq.heappush(queue, (now + pace(seed, started), started))
            started += 1

    for _ in range(workers):
        start_one(0.0)
    while queue and spent < budget:
        now, number = heapq.heappop(queue)
        steps, has_ended = advance(number)
        spent += steps
        if has_ended:
            start_one(now)
        else:
            heapq.heappush(queue, (now + pace(seed, number), number))
    return started


def pace(seed: int, number: int) -> float:
    """Virtual time between two reports; trials differ by up to a factor of 4."""
    return float(2 ** np.random.default_rng([seed, number, 1]).uniform(-1, 1))


def interval(values: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of the mean (percentiles, 10,000 resamples)."""
    means = generator.choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
