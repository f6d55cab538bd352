"""Tests of differences between two models on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DRAWS = 100_000
_DRAWS_OF_GRADES = 10_000  # each costs as much as there are distinct grades
_AT_ONCE = 256  # sizes that have a single coin
_ROUNDING = 1e-9


def mcnemar(forgotten: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947).

    Under the null hypothesis, each item on which the models differ went either way like a fair
    coin. Counts of several tasks may be added; each task is then a stratum.

    Args:
        forgotten: number of items that went right -> wrong.
        gained: number of items that went wrong -> right.
    """
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(forgotten, gained), forgotten + gained, 0.5)))


def mcnemar_over_tasks(counts: Sequence[tuple[int, int, int]], weights: Sequence[float]) -> float:
    """Two-sided p-value of a difference of accuracies that are means over tasks.

    Like McNemar's test, but with tasks weighted, however many items they have:

    statistic = |sum over tasks of weight (gained - forgotten) / items|

    Exact if every item weighs the same; otherwise from 100,000 seeded draws of fair coins. If no
    draw reaches the statistic, a bound is used if smaller (`_never_reached`).

    Args:
        counts: for each task, items that went right -> wrong, wrong -> right, and all items.
        weights: of the tasks.
    """
    fair = [(w / items, f + g) for w, (f, g, items) in zip(weights, counts, strict=True)]
    sizes = [size for size, _ in fair]
    if math.isclose(min(sizes), max(sizes)):
        return mcnemar(sum(f for f, _, _ in counts), sum(g for _, g, _ in counts))
    observed = sum(size * (g - f) for size, (f, g, _) in zip(sizes, counts, strict=True))
    return _as_far_by_chance(fair, observed, _DRAWS)


def sign_flips(differences_by_task: Sequence[ArrayLike], weights: Sequence[float]) -> float:
    """Two-sided p-value of a difference of graded scores, such as F1, that are means over tasks.

    Fisher's randomisation test of pairs (1935): under the null hypothesis, each item's difference
    could equally have had the other sign. From 10,000 seeded draws; if none reaches the statistic,
    a bound is used if smaller (`_never_reached`). For differences of -1, 0 or 1 it is McNemar's
    test.

    Args:
        differences_by_task: for each task, one score minus the other, item by item.
        weights: of the tasks.
    """
    fair: list[tuple[float, int]] = []
    observed = 0.0
    for weight, values in zip(weights, differences_by_task, strict=True):
        # Equal grades may differ in the last digits, and each distinct size costs its own draws.
        differences = np.round(np.asarray(values, dtype=float), 9)
        sizes, counts = np.unique(np.abs(differences), return_counts=True)
        fair += zip((weight * sizes / differences.size).tolist(), counts.tolist(), strict=True)
        observed += weight * float(differences.mean())
    return _as_far_by_chance([pair for pair in fair if pair[0]], observed, _DRAWS_OF_GRADES)


def _as_far_by_chance(fair: Sequence[tuple[float, int]], observed: float, draws: int) -> float:
    """Two-sided p-value: how often sums of fair coins, given as (size, count), reach this."""
    coins = np.random.default_rng(0)
    drawn = np.zeros(draws)
    for size, count in fair:
        if count > 1:
            drawn += size * (2 * coins.binomial(count, 0.5, draws) - count)
    single = [size for size, count in fair if count == 1]
    for start in range(0, len(single), _AT_ONCE):
        sizes = np.array(single[start : start + _AT_ONCE])
        drawn += (2 * coins.integers(0, 2, (draws, sizes.size), dtype=np.int8) - 1) @ sizes
    p_value = p_of_draws(drawn, observed)
    is_reached = p_value > 1 / (1 + draws)
    return p_value if is_reached else min(p_value, _never_reached(fair, observed))


def p_of_draws(drawn: NDArray[np.float64], observed: float) -> float:
    """Two-sided p-value of a statistic by those drawn at random, never 0 (Phipson & Smyth 2010)."""
    as_far = int((np.abs(drawn) >= abs(observed) - _ROUNDING).sum())
    return (1 + as_far) / (1 + len(drawn))


def _never_reached(fair: Sequence[tuple[float, int]], observed: float) -> float:
    """Two-sided bound on the probability that fair coins sum to this much (Hoeffding 1963).

    Without it, the number of draws would decide which p-values survive a correction for hundreds
    of comparisons.
    """
    squares = sum(count * size**2 for size, count in fair)
    return 2 * math.exp(-(observed**2) / (2 * squares))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple testing (Holm 1979), in the given order.

    Rejecting those at or below alpha makes any error with probability at most alpha.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    running = 0.0
    for position, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, (count - position) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted
