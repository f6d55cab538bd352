"""Intervals over items from exact limits of shares or the bootstrap, over seeds by Student's t."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.results.repeats import LEVEL, half_width

_RESAMPLES = 10_000
# Resamples beyond an end of an interval; fewer do not locate the end.
_FEWEST_BEYOND = 10


@dataclass(frozen=True)
class Interval:
    """An estimate with an interval around it, in the estimate's unit.

    Attributes:
        n: number of items or seeds.
    """

    estimate: float
    low: float
    high: float
    n: int

    @property
    def excludes_0(self) -> bool:
        """Whether 0 is outside."""
        return self.low > 0 or self.high < 0

    def including_0(self) -> Interval:
        """The interval, extended to 0 if that is outside."""
        return replace(self, low=min(self.low, 0.0), high=max(self.high, 0.0))

    def within(self, low: float, high: float) -> Interval:
        """The part of the interval within the values that its quantity can take."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))

    def negated(self) -> Interval:
        """The interval of the negated quantity."""
        return replace(self, estimate=-self.estimate, low=-self.high, high=-self.low)


def error_bars(
    values: Sequence[float], intervals: Sequence[Interval | None]
) -> tuple[list[float], list[float]]:
    """How far each value's interval reaches below it, and above it; 0 where it has none."""
    pairs = list(zip(values, intervals, strict=True))
    below = [max(value - i.low, 0.0) if i else 0.0 for value, i in pairs]
    above = [max(i.high - value, 0.0) if i else 0.0 for value, i in pairs]
    return below, above


def over_items(
    values_by_task: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    *,
    bounds: tuple[float, float],
    level: float = LEVEL,
) -> Interval:
    """Interval of the mean over tasks of each task's mean over items.

    `_shares_interval` if every item is right or wrong, as the bootstrap is far too narrow if few
    items differ; else `bootstrap_mean`.

    Args:
        values_by_task: for each task, its items' scores, or their paired differences.
        weights: of the tasks, with a sum of 1; by default all the same.
        bounds: the smallest and largest value an item can have.
        level: confidence level in (0, 1).
    """
    weighted = _weighted(values_by_task, weights)
    if all(np.isin(array, (-1, 0, 1)).all() for _, array in weighted):
        return _shares_interval(_pooled(weighted), (1 - level) / 2, can_fall=bounds[0] < 0)
    return bootstrap_mean(values_by_task, weights, bounds=bounds, level=level)


def _pooled(
    weighted: Sequence[tuple[float, NDArray[np.float64]]],
) -> list[tuple[float, NDArray[np.float64]]]:
    """Weights and items, of tasks whose items weigh the same as of one.

    A sum of items with unlike chances varies no more than one of as many with their mean chance
    (Hoeffding 1956), so limits of the share of all of them hold.
    """
    alike: defaultdict[float, list[tuple[float, NDArray[np.float64]]]] = defaultdict(list)
    for weight, array in weighted:
        alike[round(weight / array.size, 12)].append((weight, array))
    return [(sum(w for w, _ in own), np.concatenate([a for _, a in own])) for own in alike.values()]


def _shares_interval(
    tasks: Sequence[tuple[float, NDArray[np.float64]]], tail: float, can_fall: bool
) -> Interval:
    """Interval of the mean over tasks of the share of items at 1 minus the share at -1.

    MOVER (Zou & Donner 2008): each share's distances to its Clopper-Pearson limits add up as
    standard errors do, with the correlation that the two shares of a multinomial have. For paired
    proportions that is method 10 of Newcombe (1998), with exact limits in place of the score's.
    Where nothing could fall, that ends too early near a bound, so the interval reaches at least as
    far as that of one task of the effective size (as in Korn & Graubard 1998).

    Args:
        tasks: for each, its weight in the mean, and the items.
        tail: probability beyond either end.
        can_fall: whether an item could have been -1.
    """
    mean = below = above = 0.0
    for weight, values in tasks:
        rose = _share(int((values > 0).sum()), values.size, tail)
        fell = _share(int((values < 0).sum()), values.size, tail) if can_fall else _NO_SHARE
        correlation = -1.0  # where all differ, one share is 1 minus the other
        if not values.all():
            both = rose.value * fell.value
            correlation = -math.sqrt(both / (1 - rose.value) / (1 - fell.value))
        mean += weight * (rose.value - fell.value)
        below += weight**2 * _squared(rose.below, fell.above, correlation)
        above += weight**2 * _squared(rose.above, fell.below, correlation)
    n = sum(values.size for _, values in tasks)
    found = Interval(mean, mean - math.sqrt(below), mean + math.sqrt(above), n)
    if can_fall:
        return found
    effective = 1 / sum(weight**2 / values.size for weight, values in tasks)
    as_one = _share(mean * effective, effective, tail)
    low, high = mean - as_one.below, mean + as_one.above
    return replace(found, low=min(found.low, low), high=max(found.high, high))


def _squared(one: float, other: float, correlation: float) -> float:
    """The squared length of a difference of two quantities with this correlation."""
    return one**2 + other**2 - 2 * correlation * one * other


@dataclass(frozen=True)
class _Share:
    """A share of items, and how far below and above it its limits are."""

    value: float
    below: float
    above: float


_NO_SHARE = _Share(0.0, 0.0, 0.0)


def _share(count: float, n: float, tail: float) -> _Share:
    """The share and its limits (Clopper & Pearson 1934)."""
    from scipy.stats import beta

    low = float(beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(beta.isf(tail, count + 1, n - count)) if count < n else 1.0
    return _Share(count / n, count / n - low, high - count / n)


def bootstrap_mean(
    values_by_task: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
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
        weights: of the tasks, with a sum of 1; by default all the same.
        bounds: the smallest and largest value an item can have. The bootstrap varies only what it
            has seen, which is nothing where all items are alike and little where nearly all are;
            the interval then also allows for unseen items, each as far off as possible
            (`_unseen`), as errors that are independent add up.
        seed: of the draws.
        level: confidence level in (0, 1).
        resamples: number of draws.
    """
    weighted = _weighted(values_by_task, weights)
    tail = (1 - level) / 2
    drawn = max(tail, _FEWEST_BEYOND / resamples)
    means = _resampled_means(weighted, seed, resamples)
    low, high = map(float, np.quantile(means, [drawn, 1 - drawn]))
    mean = sum(w * float(a.mean()) for w, a in weighted)
    if drawn > tail:
        further = NormalDist().inv_cdf(tail) / NormalDist().inv_cdf(drawn)
        low, high = (mean + (end - mean) * further for end in (low, high))
    if bounds:
        below = _unseen([(a.size, w * (float(a.mean()) - bounds[0])) for w, a in weighted], tail)
        above = _unseen([(a.size, w * (bounds[1] - float(a.mean()))) for w, a in weighted], tail)
        low = max(mean - math.hypot(mean - low, below), bounds[0])
        high = min(mean + math.hypot(high - mean, above), bounds[1])
    return Interval(mean, low, high, sum(a.size for _, a in weighted))


def upper_bound(
    differences_by_task: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    *,
    level: float,
) -> float:
    """One-sided upper bound on the mean over tasks of differences in [-1, 1].

    The score bound of a Poisson mean, for which few items that differ are enough, where the
    bootstrap's is far too low: the largest m at which what was seen is z standard errors off,

        m - mean = z sqrt(sum of w² E[d²] / n + (m - mean) max(w / n))

    as what was not seen may be items that rise in the task in which each weighs most.

    Args:
        differences_by_task: for each task, the differences of its items.
        weights: of the tasks, with a sum of 1; by default all the same.
        level: confidence level, at least 0.975; at lower ones it is too low if no item rose.
    """
    weighted = _weighted(differences_by_task, weights)
    mean = sum(w * float(a.mean()) for w, a in weighted)
    seen = sum(w**2 * float((a**2).mean()) / a.size for w, a in weighted)
    z = NormalDist().inv_cdf(level)
    unseen = z**2 * max(w / a.size for w, a in weighted)
    return mean + (unseen + math.sqrt(unseen**2 + 4 * z**2 * seen)) / 2


def _unseen(tasks: Sequence[tuple[int, float]], tail: float) -> float:
    """How far a weighted mean of tasks may be off although no item in the sample is.

    The largest sum over tasks of p x d, where a fraction p of a task's items is off by d, subject
    to a sample without any such item having probability `tail` or more:

        maximise sum of p d   where   product of (1 - p) ** n >= tail

    Lagrange's condition is 1 - p = min(1, mu n / d). For one task it is the bound of Clopper &
    Pearson (1934) for 0 of n; a small task next to a large one bounds the mean as if alone.

    Args:
        tasks: for each, the number of its items and how far one of them can be off, times the
            task's weight in the mean; 0 for no tasks.
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
    return sum(off)


def _weighted(
    values_by_task: Sequence[ArrayLike], weights: Sequence[float] | None
) -> list[tuple[float, NDArray[np.float64]]]:
    """Each task's weight and values."""
    arrays = [np.asarray(values, dtype=float) for values in values_by_task]
    return list(zip(weights or [1 / len(arrays)] * len(arrays), arrays, strict=True))


def _resampled_means(
    weighted: Sequence[tuple[float, NDArray[np.float64]]], seed: int, resamples: int
) -> NDArray[np.float64]:
    """Means over tasks of items drawn anew within each."""
    generator = np.random.default_rng(seed)
    by_task = []
    for _, values in weighted:
        distinct, counts = np.unique(values, return_counts=True)
        drawn = generator.multinomial(values.size, counts / values.size, size=resamples)
        by_task.append(drawn @ distinct / values.size)
    means: NDArray[np.float64] = np.asarray([w for w, _ in weighted]) @ np.asarray(by_task)
    return means


def over_seeds(values: Sequence[float], rounding: float = 0.0) -> Interval | None:
    """Student's t interval of the mean over seeds, as of `half_width`; None for fewer than two."""
    half = half_width(values, rounding)
    if half is None:
        return None
    mean = float(np.mean(values))
    return Interval(mean, mean - half, mean + half, len(values))


def difference_over_seeds(
    one: Sequence[float], other: Sequence[float], rounding: float = 0.0
) -> Interval | None:
    """Interval of the difference of two means over seeds, each of one or more; None of one and one.

    Half-widths of the two means' intervals add up as standard errors do (Zou & Donner 2008). A
    single value is a new case beside a sample of n, which varies as those do: the half-width is
    t s sqrt(1 + 1/n), with t and s of the sample.
    """
    halves = (half_width(values, rounding) for values in (one, other))
    known = [half for half in halves if half is not None]
    if not known:
        return None
    n = len(one) + len(other)
    half = math.hypot(*known) if len(known) == 2 else known[0] * math.sqrt(n)
    difference = float(np.mean(one) - np.mean(other))
    return Interval(difference, difference - half, difference + half, n).within(-1, 1)
