"""How many items it takes to show that a rank suffices in the domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from analysis.results.repeats import LEVEL

NEGLIGIBLE = 0.02
"""A difference in accuracy that counts as none: 2 points."""
FEWEST_RANKS = 3
FEWEST_OF_RANK = 4
"""Trials; of fewer the best is often at a learning rate far from the best."""


def level_of_rank(ranks: int, trials: int) -> float:
    """Confidence level at which one of these ranks, the best of so many trials, is bounded.

    Bonferroni's correction over all ranks but the highest, and over the trials.
    """
    return 1 - (1 - LEVEL) / (ranks - 1) / trials


def items_needed(sizes: Sequence[int], weights: Sequence[float], *, level: float) -> int:
    """How many items in all can have an upper bound of `NEGLIGIBLE` on what a higher rank gains.

    With as many the bound (`analysis.stats.intervals.upper_bound`) is reached if ranks differ in
    none, whatever these items' differences are.

    Args:
        sizes: numbers of items of the tasks, whose proportions are kept.
        weights: of the tasks, with a sum of 1.
        level: confidence level.
    """
    heaviest = max(weight / size for weight, size in zip(weights, sizes, strict=True))
    return math.ceil(sum(sizes) * NormalDist().inv_cdf(level) ** 2 * heaviest / NEGLIGIBLE)
