"""Intervals over items by the bootstrap, over seeds by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.results.repeats import half_width

_RESAMPLES = 10_000
# Resamples beyond an end of an interval; fewer do not locate the end.
_FEWEST_BEYOND = 10
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with an interval around it, in the estimate's unit.

    Attributes:
        n: number of items or seeds.
        level: confidence level.
    """

    estimate: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    def negated(self) -> Interval:
        """The interval of the negated quantity."""
        return replace(self, estimate=-self.estimate, low=-self.high, high=-self.low)


def bootstrap_mean(
    values_by_task: Sequence[ArrayLike],
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
) -> Interval:
    """Bootstrap percentile interval of the mean over tasks of each task's mean over items.

    Items are resampled within each task (Efron & Tibshirani 1993, ch. 13; tasks are strata), so
    pass paired differences for a paired interval. Resampling n items is one multinomial draw of
    how often each distinct value occurs, so the cost does not grow with n. Where too few resamples
    lie beyond the level, the ends are moved out by the ratio of normal quantiles.

    Args:
        values_by_task: for each task, the values of its items; numbers of items may differ.
        bounds: the smallest and largest value an item can have. If all items are alike, the
            bootstrap has nothing to vary; the interval then allows for unseen items, each as far
            off as possible (`_unseen`).
        seed: of the draws.
        level: confidence level in (0, 1).
        resamples: number of draws.

    Raises:
        ValueError: there is no task, or a task without items.
    """
    arrays = _arrays(values_by_task)
    tail = (1 - level) / 2
    drawn = max(tail, min(_FEWEST_BEYOND / resamples, (1 - LEVEL) / 2))
    low, high = map(float, np.quantile(_means(arrays, seed, resamples), [drawn, 1 - drawn]))
    mean, n = _mean(arrays), sum(array.size for array in arrays)
    if drawn > tail:
        further = NormalDist().inv_cdf(tail) / NormalDist().inv_cdf(drawn)
        low, high = (mean + (end - mean) * further for end in (low, high))
    if bounds:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    if bounds and all((array == array[0]).all() for array in arrays):
        low = mean - _unseen([(a.size, float(a[0]) - bounds[0]) for a in arrays], tail)
        high = mean + _unseen([(a.size, bounds[1] - float(a[0])) for a in arrays], tail)
    return Interval(mean, low, high, n, level)


def upper_bound(
    differences_by_task: Sequence[ArrayLike], *, seed: int = 0, level: float = LEVEL
) -> float:
    """One-sided upper bound on the mean over tasks of differences in [-1, 1], by the bootstrap.

    If no item rose in the sample, the bootstrap cannot draw any that does, so the bound is at
    least that for unseen rising items (`_unseen`; about 3 / n for one task).
    """
    arrays = _arrays(differences_by_task)
    bound = float(np.quantile(_means(arrays, seed, _RESAMPLES), level))
    if any((array > 0).any() for array in arrays):
        return bound
    return max(bound, _unseen([(array.size, 1.0) for array in arrays], 1 - level))


def _unseen(tasks: Sequence[tuple[int, float]], tail: float) -> float:
    """How far the mean over tasks may be off although no item in the sample is.

    The largest mean over tasks of p x d, where a fraction p of a task's items is off by d, subject
    to a sample without any such item having probability `tail` or more:

        maximise sum of p d / tasks   where   product of (1 - p) ** n >= tail

    Lagrange's condition is 1 - p = min(1, mu n / d). For one task it is the bound of Clopper &
    Pearson (1934) for 0 of n; a small task next to a large one bounds the mean as if alone.

    Args:
        tasks: for each, the number of its items and how far one of them can be off.
        tail: probability in (0, 1).
    """
    ratios = sorted((n / distance, n, distance) for n, distance in tasks if distance > 0)
    items, weighted, log_mu = 0, 0.0, 0.0
    taken = 0
    for ratio, n, _ in ratios:
        if taken and log_mu + math.log(ratio) >= 0:  # from here on p is 0
            break
        items, weighted, taken = items + n, weighted + n * math.log(ratio), taken + 1
        log_mu = (math.log(tail) - weighted) / items
    off = [distance * (1 - math.exp(log_mu) * ratio) for ratio, _, distance in ratios[:taken]]
    return sum(off) / len(tasks)


def _arrays(values_by_task: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    arrays = [np.asarray(values, dtype=float) for values in values_by_task]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError("every task needs items")
    return arrays


def _mean(arrays: Sequence[NDArray[np.float64]]) -> float:
    return float(np.mean([array.mean() for array in arrays]))


def _means(arrays: Sequence[NDArray[np.float64]], seed: int, resamples: int) -> NDArray[np.float64]:
    """Resampled means over tasks."""
    generator = np.random.default_rng(seed)
    by_task = [_resampled_means(array, resamples, generator) for array in arrays]
    means: NDArray[np.float64] = np.mean(by_task, axis=0)
    return means


def _resampled_means(
    values: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    distinct, counts = np.unique(values, return_counts=True)
    drawn = generator.multinomial(values.size, counts / values.size, size=resamples)
    means: NDArray[np.float64] = drawn @ distinct / values.size
    return means


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t interval of the mean over seeds; None for fewer than two."""
    half = half_width(values, level)
    if half is None:
        return None
    mean = float(np.mean(values))
    return Interval(mean, mean - half, mean + half, len(values), level)
