"""Tests of differences between two models on the same items."""

from __future__ import annotations

from collections.abc import Sequence


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
