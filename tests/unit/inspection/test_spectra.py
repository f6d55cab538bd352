"""Spectra against closed forms and against NumPy's dense SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainables.inspection.spectra import (
    dense_spectrum,
    effective_rank,
    low_rank_spectrum,
    rank_90,
    stable_rank,
    subspace_similarity,
    vector_change,
)


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    random = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(random.double())[0]


def matrix(values: list[float], rows: int, columns: int) -> torch.Tensor:
    """With these singular values."""
    s = torch.tensor(values, dtype=torch.float64)
    left, right = orthonormal(rows, len(values), seed=1), orthonormal(columns, len(values), seed=2)
    return (left * s) @ right.T


def test_ranks_of_known_singular_values() -> None:
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert stable_rank(values) == pytest.approx(6 / 4)
    shares = (0.5, 0.25, 0.25)
    assert effective_rank(values) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert rank_90(values) == 3  # 4/6, 5/6, 6/6
    assert rank_90(torch.tensor([3.0, 1.0])) == 1  # 9/10 is enough
    assert rank_90(torch.tensor([2.9, 1.0])) == 2


@pytest.mark.parametrize(
    ("outputs", "rank", "inputs"),
    [(96, 8, 64), (64, 8, 96), (6, 16, 4)],
)
def test_low_rank_path_equals_dense_svd(outputs: int, rank: int, inputs: int) -> None:
    """Also where the rank is above the matrix's own."""
    generator = torch.Generator().manual_seed(outputs)
    B = torch.randn(outputs, rank, generator=generator)
    A = torch.randn(rank, inputs, generator=generator)
    left, values, _ = np.linalg.svd((B.double() @ A.double()).numpy())
    spectrum = low_rank_spectrum(B, A)
    count = min(outputs, rank, inputs)
    assert len(spectrum.values_K) == count
    np.testing.assert_allclose(spectrum.values_K, values[:count], rtol=1e-5)
    cosines = np.abs((left[:, :count] * spectrum.left_OK.numpy()).sum(0))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    np.testing.assert_allclose(spectrum.left_OK.T @ spectrum.left_OK, np.eye(count), atol=1e-5)


def test_one_strong_new_direction_is_one_intruder() -> None:
    """u = sum of all u0 / sqrt(n) has a cosine of 1 / sqrt(n) with each: below 0.5 for n > 4."""
    n = 25
    W0 = torch.diag(torch.linspace(2, 1, n, dtype=torch.float64))
    new = torch.full((n, 1), n**-0.5, dtype=torch.float64)
    W = W0 + 1000 * new @ new.T
    change = vector_change(dense_spectrum(W0).left_OK, dense_spectrum(W).left_OK)
    assert change.intruders == 1


def test_only_the_top_500_are_compared_but_intruders_with_all() -> None:
    """The first tuned vector is the base's 510th: no intruder, and without a match in the top."""
    base = torch.eye(520)
    order = [509, *range(509), *range(510, 520)]
    change = vector_change(base, base[:, order])
    assert change.intruders == 0
    assert change.cosine_by_index == 0
    assert change.cosine_by_maximum == pytest.approx(499 / 500)


def test_subspace_similarity_of_equal_nested_and_disjoint_spans() -> None:
    basis = orthonormal(20, 6)
    turned = basis[:, :3] @ orthonormal(3, 3, seed=9)
    assert subspace_similarity(basis[:, :3], turned) == pytest.approx(1)
    assert subspace_similarity(basis[:, :1], basis) == pytest.approx(1)
    assert subspace_similarity(basis[:, :3], basis[:, 3:]) == pytest.approx(0, abs=1e-12)
    assert subspace_similarity(basis[:, :2], basis[:, 1:3]) == pytest.approx(1 / 2)
