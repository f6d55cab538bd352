"""Whether one quantity rises or falls with another, without assuming how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PERMUTATIONS = 9_999
_CHUNK = 256


@dataclass(frozen=True)
class Trend:
    """A measure of association in [-1, 1], and how often chance alone gives as much.

    Attributes:
        statistic: Kendall's tau-b or Spearman's rho.
        p_value: two-sided, from permutations.
        n: pairs of values.
    """

    statistic: float
    p_value: float
    n: int


def spearman(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Trend:
    """Spearman's rho with ties at mean ranks, and a permutation test of it.

    rho is NaN, and p 1, where one of the two is constant.
    """
    from scipy.stats import rankdata

    one, other = (_standardised(rankdata(values)) for values in (first, second))
    n = len(first)
    if not (one.any() and other.any()):
        return Trend(float("nan"), 1.0, n)
    rho = float(one @ other)
    generator = np.random.default_rng(seed)
    drawn = generator.permuted(np.tile(one, (_PERMUTATIONS, 1)), axis=1) @ other
    return Trend(rho, _p_value(drawn, rho), n)


def _standardised(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = ranks - ranks.mean()
    norm = np.linalg.norm(centred)
    standardised: NDArray[np.float64] = centred / norm if norm > 0 else centred * 0
    return standardised


def jonckheere(groups: Sequence[float], values: Sequence[float], *, seed: int = 0) -> Trend:
    """The Jonckheere-Terpstra test for ordered groups, such as ranks (Jonckheere 1954).

    Its statistic counts the pairs from different groups whose values are in the groups' order.
    It is given as Kendall's tau-b, of which it is an increasing function for fixed groups; the
    p-value comes from permutations of the values over the groups.
    """
    n = len(groups)
    ordered = np.asarray(groups, dtype=np.float32)
    rises = _signs(np.asarray(values, dtype=float))
    order = _signs(ordered)
    pairs = float(np.sqrt(np.square(order).sum(dtype=float) * np.square(rises).sum(dtype=float)))
    if pairs == 0:
        return Trend(float("nan"), 1.0, n)
    agreement = float((order * rises).sum())
    generator = np.random.default_rng(seed)
    drawn = np.concatenate(
        [
            _agreements(ordered, rises, generator, min(_CHUNK, _PERMUTATIONS - done))
            for done in range(0, _PERMUTATIONS, _CHUNK)
        ]
    )
    return Trend(agreement / pairs, _p_value(drawn, agreement), n)


def _signs(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """[i, j]: the sign of value j minus value i."""
    return np.sign(values[None, :] - values[:, None]).astype(np.float32)


def _agreements(
    groups: NDArray[np.float32],
    rises: NDArray[np.float32],
    generator: np.random.Generator,
    count: int,
) -> NDArray[np.float64]:
    """Agreement of permuted groups with the values' order, once for each permutation."""
    levels = np.unique(groups)
    labels_KN = generator.permuted(np.tile(groups, (count, 1)), axis=1)
    above_KNG = np.sign(labels_KN[:, :, None] - levels)
    sums_KNG = rises @ above_KNG
    own_KN = np.searchsorted(levels, labels_KN)
    chosen = np.take_along_axis(sums_KNG, own_KN[:, :, None], axis=2)
    agreements: NDArray[np.float64] = chosen.sum(axis=(1, 2), dtype=float)
    return agreements


def _p_value(drawn: NDArray[np.float64], observed: float) -> float:
    """Two-sided, never 0 (Phipson & Smyth 2010)."""
    as_extreme = int((np.abs(drawn) >= abs(observed) - 1e-9).sum())
    return (as_extreme + 1) / (len(drawn) + 1)
