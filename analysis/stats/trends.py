"""A nonparametric test of whether one quantity rises or falls with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PERMUTATIONS = 9_999
_ROUNDING = 1e-9  # what may be left of a residual that is none
_MOST_NUMBERS = 4_000_000  # held at once: permutations x values


@dataclass(frozen=True)
class Trend:
    """A measure of association in [-1, 1], and how often chance alone reaches it.

    Attributes:
        rho: partial Spearman's rho; NaN if it is not defined.
        p_value: two-sided, from permutations.
        n: number of pairs of values.
    """

    rho: float
    p_value: float
    n: int


def spearman(first: Sequence[float], second: Sequence[float], given: Sequence[float]) -> Trend:
    """Partial Spearman's rho with ties at mean ranks, and its permutation test.

    Args:
        first: of each thing; rho is NaN and p is 1 if it is constant, or goes as `given` exactly.
        second: to compare with it, likewise.
        given: what both may rise or fall with, or be best at one value of, such as the learning
            rate; if it is constant, rho is the plain one. The residuals on its ranks and their
            squares are permuted (Freedman & Lane 1983).
    """
    from scipy.linalg import orth
    from scipy.stats import permutation_test, rankdata

    n = len(first)
    centred = (rankdata(given) - (n + 1) / 2) / n
    basis_NP = orth(np.stack([centred**0, centred, centred**2], axis=1), rcond=_ROUNDING)
    one, other = (_residuals(rankdata(values), basis_NP) for values in (first, second))
    if not (one.any() and other.any()):
        return Trend(float("nan"), 1.0, n)

    def rho(permuted: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        permuted = np.moveaxis(permuted, axis, -1)
        # What a permutation shares with `given` by chance is left out of it, too.
        left = 1 - np.square(permuted @ basis_NP).sum(axis=-1)
        return np.asarray(permuted @ other / np.sqrt(np.maximum(left, _ROUNDING)))

    found = permutation_test(
        (one,),
        rho,
        permutation_type="pairings",
        n_resamples=_PERMUTATIONS,
        batch=max(1, _MOST_NUMBERS // n),
        vectorized=True,
        rng=0,
    )
    return Trend(float(found.statistic), float(found.pvalue), n)


def _residuals(ranks: NDArray[np.float64], basis_NP: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the basis does not explain, with norm 1; zeros if that is nothing."""
    left = ranks - basis_NP @ (ranks @ basis_NP)
    norm = np.linalg.norm(left)
    return np.asarray(left / norm if norm > _ROUNDING * len(ranks) else left * 0)
