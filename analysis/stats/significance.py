"""Tests of differences between two models on the same items."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DRAWS = 9_999
_MOST_SUMS = 1 << 23  # of all distributions
_ROUNDING = 1e-9  # of the statistic, by the order of additions
_DECIMALS = 12  # sizes and sums that agree to as many are equal

_Distribution = tuple[NDArray[np.float64], NDArray[np.float64]]


def sign_flips(differences_by_task: Sequence[ArrayLike], weights: Sequence[float]) -> float:
    """Two-sided p-value of a difference of scores that are means over tasks.

    Fisher's randomisation test of pairs (1935): under the null hypothesis, each item's difference
    could equally have had the other sign. Where items are right or wrong and weigh the same it is
    McNemar's exact test (1947).

    Exact unless the differences are of too many sizes, as of continuous grades: then from seeded
    draws or, if none reaches the statistic, by Hoeffding's bound (1963) if that is smaller:
    else the number of draws would decide which p-values survive a correction for many comparisons.
    Never 0.

    Args:
        differences_by_task: for each task, one score minus the other, item by item.
        weights: of the tasks.
    """
    arrays = [np.asarray(values, dtype=float) for values in differences_by_task]
    parts = [w / values.size * values for w, values in zip(weights, arrays, strict=True)]
    every = np.concatenate(parts).round(_DECIMALS)
    sizes, counts = np.unique(np.abs(every[every != 0]), return_counts=True)
    p_value = _exact(sizes, counts, abs(every.sum()))
    if p_value is None:
        p_value = _by_draws(every[every != 0])
    return min(1.0, max(sys.float_info.min, p_value))  # of 2,000 items alike, 2^-1999 is no float


def _exact(sizes: NDArray[np.float64], counts: NDArray[np.int_], observed: float) -> float | None:
    """Two-sided p-value of a sum of fair coins, `counts` of each size; None if it costs too much.

    The coins are dealt to two halves: only the distribution of each half needs its sums listed.
    """
    from scipy.stats import binom

    # The sums, ascending, and the chance of each.
    halves: list[_Distribution] = [(np.zeros(1), np.ones(1))] * 2
    for index in np.argsort(-counts, kind="stable"):
        heads = np.arange(counts[index] + 1)
        halves.sort(key=lambda half: half[0].size)
        sums, chances = halves[0]
        if sums.size * heads.size * sizes.size > _MOST_SUMS:
            return None
        added = np.add.outer(sizes[index] * (2 * heads - counts[index]), sums)
        of_each = np.multiply.outer(binom.pmf(heads, counts[index], 0.5), chances)
        sums, place = np.unique(added.ravel().round(_DECIMALS), return_inverse=True)
        halves[0] = sums, np.asarray(np.bincount(place, of_each.ravel()), float)
    (sums, chances), (others, of_others) = halves
    at_least = np.append(np.cumsum(of_others[::-1])[::-1], 0.0)
    return 2 * float(chances @ at_least[np.searchsorted(others, observed - _ROUNDING - sums)])


def _by_draws(differences: NDArray[np.float64]) -> float:
    """As scipy.stats.permutation_test, which takes half a minute for 20,000 items."""
    coins, drawn = np.random.default_rng(0), np.zeros(_DRAWS)
    for difference in differences:
        drawn += difference * (2 * coins.integers(0, 2, _DRAWS, np.int8) - 1)
    observed = abs(float(differences.sum()))
    reached = int((np.abs(drawn) >= observed - _ROUNDING).sum())
    p_value = (1 + reached) / (1 + _DRAWS)  # never 0 (Phipson & Smyth 2010)
    if reached:
        return p_value
    return min(p_value, 2 * float(np.exp(-(observed**2) / (2 * np.square(differences).sum()))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple testing (Holm 1979), in the given order."""
    from statsmodels.stats.multitest import multipletests

    adjusted: list[float] = multipletests(p_values, method="holm")[1].tolist()
    return adjusted
