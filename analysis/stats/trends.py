"""Nonparametric tests of whether one quantity rises or falls with another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.stats.significance import p_of_draws

_PERMUTATIONS = 9_999
_ROUNDING = 1e-9  # what may be left of a residual that is none
_MOST_CELLS = 4_000_000  # numbers held at once, such as permutations x values x groups


@dataclass(frozen=True)
class Trend:
    """A measure of association in [-1, 1], and how often chance alone reaches it.

    Attributes:
        statistic: Kendall's tau-b or partial Spearman's rho.
        p_value: two-sided, from permutations.
        n: number of pairs of values.
    """

    statistic: float
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
    from scipy.stats import rankdata

    beside_NP = _up_to_squares(rankdata(given))
    both = (_standardised(rankdata(values)) for values in (first, second))
    one, other = (_standardised(ranks - beside_NP @ (ranks @ beside_NP)) for ranks in both)
    n = len(first)
    if not (one.any() and other.any()):
        return Trend(float("nan"), 1.0, n)
    rho = float(one @ other)
    generator = np.random.default_rng(0)
    drawn = []
    for count in _in_parts(n):
        permuted = generator.permuted(np.tile(one, (count, 1)), axis=1)
        # What a permutation has of `given` by chance is left out of it, too.
        left = np.maximum(1 - np.square(permuted @ beside_NP).sum(axis=1), _ROUNDING)
        drawn.append(permuted @ other / np.sqrt(left))
    return Trend(rho, p_of_draws(np.concatenate(drawn), rho), n)


def _in_parts(cells: int) -> Iterator[int]:
    """Sizes of the batches in which to draw all permutations, of `cells` numbers each."""
    at_once = _MOST_CELLS // cells
    for done in range(0, _PERMUTATIONS, at_once):
        yield min(at_once, _PERMUTATIONS - done)


def _standardised(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = ranks - ranks.mean()
    norm = np.linalg.norm(centred)
    standardised: NDArray[np.float64] = centred / norm if norm > _ROUNDING else centred * 0
    return standardised


def _up_to_squares(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns (N, up to 3) that make up a constant, the ranks, and their squares."""
    middle = ranks - ranks.mean()
    left_NP, sizes_P, _ = np.linalg.svd(
        np.stack([middle**0, middle, middle**2 / len(ranks)], axis=1), full_matrices=False
    )
    return np.asarray(left_NP[:, sizes_P > _ROUNDING * sizes_P[0]])


def jonckheere(groups: Sequence[float], values: Sequence[float], strata: Sequence[float]) -> Trend:
    """The Jonckheere-Terpstra test for ordered groups, such as ranks (Jonckheere 1954).

    Its statistic counts the pairs from different groups whose values are in the groups' order. It
    is reported as Kendall's tau-b, which increases with it for fixed groups; the p-value comes
    from permuting the values over the groups.

    Args:
        groups: of each value.
        values: to compare.
        strata: of each value. Values are paired and permuted only within a stratum, and counts are
            summed over these (as van Elteren 1960 does for two groups), so that what else differs
            between strata is not taken for noise.
    """
    labels_N = np.unique(np.asarray(groups, dtype=float), return_inverse=True)[1]
    values_N = np.asarray(values, dtype=float)
    strata_N = np.asarray(strata)
    generator = np.random.default_rng(0)
    agreements_K = np.zeros(1 + _PERMUTATIONS)
    untied_labels = untied_values = 0.0
    for stratum in np.unique(strata_N):
        is_in_N = strata_N == stratum
        agreements_K += _arranged(labels_N[is_in_N], values_N[is_in_N], generator)
        untied_labels += _untied(labels_N[is_in_N])
        untied_values += _untied(values_N[is_in_N])
    pairs = float(np.sqrt(untied_labels * untied_values))
    if pairs == 0:
        return Trend(float("nan"), 1.0, len(values_N))
    agreement = float(agreements_K[0])
    return Trend(agreement / pairs, p_of_draws(agreements_K[1:], agreement), len(values_N))


def _arranged(
    labels_N: NDArray[np.intp], values_N: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """`_agreements` of the labels as they are, then of each of their permutations."""
    order = np.argsort(values_N, kind="stable")
    sorted_values = values_N[order]
    levels, labels = np.unique(labels_N[order], return_inverse=True)
    lower_N = np.searchsorted(sorted_values, sorted_values)  # how many values are below each
    drawn = [
        _agreements(generator.permuted(np.tile(labels, (count, 1)), axis=1), lower_N, len(levels))
        for count in _in_parts(len(labels) * len(levels))
    ]
    return np.concatenate([_agreements(labels[None], lower_N, len(levels)), *drawn])


def _untied(values: NDArray[np.generic]) -> float:
    """Number of ordered pairs that are not ties."""
    _, counts = np.unique(values, return_counts=True)
    return float(len(values) ** 2 - np.square(counts).sum())


def _agreements(
    labels_KN: NDArray[np.intp], lower_N: NDArray[np.intp], levels: int
) -> NDArray[np.float64]:
    """Ordered pairs in the groups' order minus those against it, for each of K labellings.

    Args:
        labels_KN: the group of each value, values ascending.
        lower_N: for each value, how many are below it.
        levels: number of groups.
    """
    is_in_KNG = labels_KN[:, :, None] == np.arange(levels)
    before_KNG = np.concatenate(
        [np.zeros_like(is_in_KNG[:, :1], dtype=np.int32), is_in_KNG.cumsum(axis=1, dtype=np.int32)],
        axis=1,
    )[:, lower_N]
    signs_GG = np.sign(np.arange(levels)[:, None] - np.arange(levels)).astype(np.int32)
    agreements: NDArray[np.float64] = 2 * (before_KNG * signs_GG[labels_KN]).sum(
        axis=(1, 2), dtype=np.float64
    )
    return agreements
