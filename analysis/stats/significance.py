"""Tests of differences between two models on the same items."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FEWEST_DRAWS, _MOST_DRAWS = 10_000, 100_000
_MOST_TOSSED = 20_000_000  # numbers drawn beyond the fewest draws, as each size is drawn by itself
_MOST_SUMS = 1 << 23  # listed for a distribution, an equal share of them with each size
_SAME = 1e-12  # of two sums of the same sizes in another order
_ROUNDING = 1e-9

_Weighted = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Distinct values, ascending, and what each one has, such as its probability."""


def sign_flips(differences_by_task: Sequence[ArrayLike], weights: Sequence[float]) -> float:
    """Two-sided p-value of a difference of scores that are means over tasks.

    Fisher's randomisation test of pairs (1935): under the null hypothesis, each item's difference
    could equally have had the other sign. Where items are right or wrong and weigh the same it is
    McNemar's exact test (1947).

    Exact unless the differences are of too many sizes, as of continuous grades: then from 10,000 or
    more seeded draws or, if none reaches the statistic, by a bound if that is smaller. Never 0.

    Args:
        differences_by_task: for each task, one score minus the other, item by item.
        weights: of the tasks.
    """
    sized: list[NDArray[np.float64]] = []
    observed = 0.0
    for weight, values in zip(weights, differences_by_task, strict=True):
        differences = np.asarray(values, dtype=float)
        sized.append(weight / differences.size * np.abs(differences))
        observed += weight * float(differences.mean())
    every = np.concatenate(sized)
    differing = every[every > _SAME]
    sizes, alike = _merged(differing, np.ones(differing.size))
    counts = alike.astype(int)
    p_value = _exact(sizes, counts, abs(observed))
    if p_value is None:
        p_value = _by_draws(sizes, counts, observed)
    return min(1.0, max(sys.float_info.min, p_value))  # of 2,000 items alike, 2^-1999 is no float


def _exact(sizes: NDArray[np.float64], counts: NDArray[np.int_], observed: float) -> float | None:
    """Two-sided p-value of a sum of fair coins, `counts` of each size; None if it costs too much.

    The coins are dealt to two halves: only the distribution of each half needs its sums listed.
    Sums that agree are one, so that of grades in few steps there are few.
    """
    from scipy.stats import binom

    halves: list[_Weighted] = [(np.zeros(1), np.ones(1))] * 2
    for index in np.argsort(-counts, kind="stable"):
        size, count = sizes[index], counts[index]
        halves.sort(key=lambda half: half[0].size)
        values, chances = halves[0]
        if values.size * (count + 1) * sizes.size > _MOST_SUMS:
            return None
        heads = np.arange(count + 1)
        sums = np.add.outer(size * (2 * heads - count), values)
        of_sums = np.multiply.outer(binom.pmf(heads, count, 0.5), chances)
        halves[0] = _merged(sums.ravel(), of_sums.ravel())
    (values, chances), (others, of_others) = halves
    at_least = np.append(np.cumsum(of_others[::-1])[::-1], 0.0)
    needed = observed - _ROUNDING - values
    return 2 * float(chances @ at_least[np.searchsorted(others, needed)])


def _merged(values: NDArray[np.float64], amounts: NDArray[np.float64]) -> _Weighted:
    """Each distinct value with the sum of its amounts."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    first = np.flatnonzero(np.diff(ascending, prepend=-np.inf) > _SAME)
    return ascending[first], np.add.reduceat(amounts[order], first)


def _by_draws(sizes: NDArray[np.float64], counts: NDArray[np.int_], observed: float) -> float:
    """The p-value by draws or, if none reaches the statistic, by Hoeffding's bound (1963).

    Without the bound, the number of draws would decide which p-values survive a correction for
    hundreds of comparisons.
    """
    draws = min(_MOST_DRAWS, max(_FEWEST_DRAWS, _MOST_TOSSED // sizes.size))
    coins = np.random.default_rng(0)
    drawn = np.zeros(draws)
    for size, count in zip(sizes, counts, strict=True):
        if count == 1:  # many times faster than a binomial number
            heads = coins.integers(0, 2, draws, np.int8)
        else:
            heads = coins.binomial(count, 0.5, draws)
        drawn += size * (2 * heads - count)
    p_value = p_of_draws(drawn, observed)
    if p_value > 1 / (1 + draws):
        return p_value
    return min(p_value, 2 * float(np.exp(-(observed**2) / (2 * counts @ sizes**2))))


def p_of_draws(drawn: NDArray[np.float64], observed: float) -> float:
    """Two-sided p-value of a statistic by those drawn at random, never 0 (Phipson & Smyth 2010)."""
    as_far = int((np.abs(drawn) >= abs(observed) - _ROUNDING).sum())
    return (1 + as_far) / (1 + len(drawn))


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
