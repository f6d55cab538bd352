"""Tests of differences between two models on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_DRAWS = 100_000
_DRAWS_OF_GRADES = 10_000  # of which each costs as much as there are different grades
_AT_ONCE = 256  # sizes of which there is one coin each
_ROUNDING = 1e-9


def mcnemar(forgotten: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947).

    Under the null hypothesis each item on which the models differ went either way like a fair
    coin. Counts of several tasks may be added up: then each task is a stratum.

    Args:
        forgotten: items that went right -> wrong.
        gained: items that went wrong -> right.
    """
    discordant = forgotten + gained
    if discordant == 0:
        return 1.0
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(forgotten, gained), discordant, 0.5)))


def mcnemar_over_tasks(counts: Sequence[tuple[int, int, int]]) -> float:
    """Two-sided p-value of a difference of accuracies that are means over tasks.

    As McNemar's test, but each task counts the same, however many items it has:

    statistic = |sum over tasks of (gained - forgotten) / items|

    Exact where all tasks have as many items; otherwise from 100,000 draws of fair coins, and
    equal inputs give equal values. What no draw reaches has a bound instead (`_never_reached`).

    Args:
        counts: of each task the items that went right -> wrong, wrong -> right, and all items.
    """
    if len({items for _, _, items in counts}) == 1:
        return mcnemar(sum(f for f, _, _ in counts), sum(g for _, g, _ in counts))
    fair = [(1 / items, forgotten + gained) for forgotten, gained, items in counts]
    observed = sum((gained - forgotten) / items for forgotten, gained, items in counts)
    return _as_far_by_chance(fair, observed, _DRAWS)


def sign_flips(differences_by_task: Sequence[ArrayLike]) -> float:
    """Two-sided p-value of a difference of graded scores, such as F1, that are means over tasks.

    Fisher's randomisation test of pairs (1935): under the null hypothesis each item's difference
    might as well have had the other sign. From 10,000 draws, and equal inputs give equal values;
    what no draw reaches has a bound instead (`_never_reached`). Of differences that are -1, 0 or 1
    it is McNemar's test.

    Args:
        differences_by_task: for each task one score minus the other, item by item.
    """
    import numpy as np

    fair: list[tuple[float, int]] = []
    observed = 0.0
    for values in differences_by_task:
        # Rounded, as equal grades may differ by rounding, and each size costs draws of its own.
        differences = np.round(np.asarray(values, dtype=float), 9)
        sizes, counts = np.unique(np.abs(differences), return_counts=True)
        fair += zip((sizes / differences.size).tolist(), counts.tolist(), strict=True)
        observed += float(differences.mean())
    return _as_far_by_chance([pair for pair in fair if pair[0]], observed, _DRAWS_OF_GRADES)


def _as_far_by_chance(fair: Sequence[tuple[float, int]], observed: float, draws: int) -> float:
    """How often coins, so many of each size, add up to what was observed or more, either way."""
    import numpy as np

    coins = np.random.default_rng(0)
    drawn = np.zeros(draws)
    for size, count in fair:
        if count > 1:
            drawn += size * (2 * coins.binomial(count, 0.5, draws) - count)
    single = [size for size, count in fair if count == 1]
    for start in range(0, len(single), _AT_ONCE):
        sizes = np.array(single[start : start + _AT_ONCE])
        drawn += (2 * coins.integers(0, 2, (draws, sizes.size), dtype=np.int8) - 1) @ sizes
    as_far = int((np.abs(drawn) >= abs(observed) - _ROUNDING).sum())
    p_value = (1 + as_far) / (1 + draws)
    return p_value if as_far else min(p_value, _never_reached(fair, observed))


def _never_reached(fair: Sequence[tuple[float, int]], observed: float) -> float:
    """Bound on the chance that fair coins add up to so much, either way (Hoeffding 1963).

    Without it the number of draws would decide which p-values survive a correction for hundreds
    of comparisons.
    """
    squares = sum(count * size**2 for size, count in fair)
    return 2 * math.exp(-(observed**2) / (2 * squares)) if squares else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979), in the given order.

    Rejecting those at or below alpha errs in any of them with probability alpha at most.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    running = 0.0
    for position, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, (count - position) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted
