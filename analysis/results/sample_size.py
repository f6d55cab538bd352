"""How many items it takes to show that a capacity suffices in the domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from analysis.results.repeats import LEVEL

NEGLIGIBLE = 0.02
"""A difference in accuracy that counts as none: 2 points."""
FEWEST_CAPACITIES = 3
FEWEST_OF_CAPACITY = 4
"""Trials; of fewer the best is often at a learning rate far from the best."""


def level_of_capacity(capacities: int, trials: int) -> float:
    """Confidence level at which one of these capacities, the best of so many trials, is bounded.

    Bonferroni's correction over all capacities but the largest, and over the trials.
    """
    return 1 - (1 - LEVEL) / (capacities - 1) / trials


def items_needed(sizes: Sequence[int], weights: Sequence[float], *, level: float) -> int:
    """How many items in all can have an upper bound of `NEGLIGIBLE` on a larger one's gain.

    With as many the bound (`analysis.stats.intervals.upper_bound`) is reached if capacities
    differ in none, whatever these items' differences are.

    Args:
        sizes: numbers of items of the tasks, whose proportions are kept.
        weights: of the tasks, with a sum of 1.
        level: confidence level.
    """
    heaviest = max(weight / size for weight, size in zip(weights, sizes, strict=True))
    return math.ceil(sum(sizes) * NormalDist().inv_cdf(level) ** 2 * heaviest / NEGLIGIBLE)
