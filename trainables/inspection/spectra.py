"""Singular values and vectors of weight updates, and how updates change a matrix' own vectors.

Shapes: O outputs, I inputs, R rank of the adapter, K singular vectors.

Costs: an adapter's spectrum O(R^2 (O + I)), by QR of its factors. A full matrix' singular vectors
are eigenvectors of its smaller Gram matrix, O(min(O, I)^3); in float64 they are as accurate as a
float32 SVD, and cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from filelock import FileLock
from safetensors.torch import load_file

from trainables.inspection.saved_weights import save_whole
from trainables.inspection.updates import MatrixUpdate
from trainables.storage.locations import node_cache

_ENERGY = 0.9
_INTRUDER_VECTORS = 10
_INTRUDER_COSINE = 0.5
COMPARED_VECTORS = 500
DIRECTIONS = 8
# The Gram matrix halves the digits: below this fraction of the largest, values are noise.
_RELATIVE_ZERO = 1e-7


@dataclass(frozen=True)
class Spectrum:
    """Non-zero singular values of a matrix, largest first, and its left singular vectors.

    Attributes:
        values_K: float64.
        left_OK: float64, orthonormal columns; possibly only those of the top values.
    """

    values_K: torch.Tensor
    left_OK: torch.Tensor


def update_spectrum(update: MatrixUpdate) -> Spectrum:
    """Spectrum of dW with at least its top 8 directions; an adapter's dW is never formed."""
    if isinstance(update.delta, tuple):
        return low_rank_spectrum(*update.delta)
    return dense_spectrum(update.delta, top=DIRECTIONS)


def low_rank_spectrum(B_OR: torch.Tensor, A_RI: torch.Tensor) -> Spectrum:
    """Spectrum of B A = Q_B (R_B R_A^T) Q_A^T: the SVD of the inner R x R matrix, turned by Q_B."""
    Q_OR, triangle_B = torch.linalg.qr(B_OR.double())
    _, triangle_A = torch.linalg.qr(A_RI.double().T)
    left, values, _ = torch.linalg.svd(triangle_B @ triangle_A.T)
    return _without_zeros(values, Q_OR @ left[:, : len(values)])


def dense_spectrum(W_OI: torch.Tensor, top: int | None = None) -> Spectrum:
    """Spectrum of any matrix, from W W^T or W^T W; with all left singular vectors or the `top`."""
    W_OI = W_OI.double()
    tall = W_OI.shape[0] > W_OI.shape[1]
    squares, vectors = torch.linalg.eigh(W_OI.T @ W_OI if tall else W_OI @ W_OI.T)
    values, vectors = squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)
    spectrum = _without_zeros(values, vectors)
    vectors = spectrum.left_OK[:, :top]
    if tall:  # so far these are the right singular vectors
        vectors = W_OI @ vectors / spectrum.values_K[:top]
    return Spectrum(spectrum.values_K, vectors)


def _without_zeros(values: torch.Tensor, vectors: torch.Tensor) -> Spectrum:
    count = int((values > _RELATIVE_ZERO * values.max()).sum()) if len(values) else 0
    return Spectrum(values[:count], vectors[:, :count])


def stable_rank(values_K: torch.Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm: 1 to the rank."""
    return float(values_K.square().sum() / values_K[0].square())


def effective_rank(values_K: torch.Tensor) -> float:
    """exp(-sum p log p) with p = s / sum(s): 1 to the rank (Roy and Vetterli 2007)."""
    shares = values_K / values_K.sum()
    return float(torch.special.entr(shares).sum().exp())


def rank_90(values_K: torch.Tensor) -> int:
    """The smallest k whose top k singular values carry 90 % of sum s^2 (2405.09673)."""
    carried = values_K.square().cumsum(0)
    return int((carried < _ENERGY * carried[-1]).sum()) + 1


@dataclass(frozen=True)
class VectorChange:
    """How the left singular vectors of a matrix moved; see `MatrixChange`."""

    intruders: int
    cosine_by_index: float
    cosine_by_maximum: float


def vector_change(base_OK: torch.Tensor, tuned_OK: torch.Tensor) -> VectorChange:
    """Compare all left singular vectors of W0 with the first ones of W, both in order."""
    compared = min(COMPARED_VECTORS, base_OK.shape[1], tuned_OK.shape[1])
    tuned_OK = tuned_OK[:, : max(compared, _INTRUDER_VECTORS)]
    cosines = (base_OK.T @ tuned_OK.to(base_OK.dtype)).abs()
    square = cosines[:compared, :compared]
    return VectorChange(
        intruders=int((cosines[:, :_INTRUDER_VECTORS].amax(0) < _INTRUDER_COSINE).sum()),
        cosine_by_index=float(square.diagonal().mean()),
        cosine_by_maximum=float(square.amax(0).mean()),
    )


def subspace_similarity(U_OI: torch.Tensor, V_OJ: torch.Tensor) -> float:
    """norm_F(U^T V)^2 / min(i, j) of two sets of orthonormal columns, 0 to 1 (LoRA, eq. 4).

    2106.09685 compares right singular vectors of A; here they are left singular vectors of dW.
    """
    return float((U_OI.T @ V_OJ).square().sum() / min(U_OI.shape[1], V_OJ.shape[1]))


def left_vectors(fingerprint: str, name: str, base_OI: torch.Tensor) -> torch.Tensor:
    """All left singular vectors of a base's matrix in float32, by descending singular value.

    They are computed once per node and cached below `node_cache()`, where they take about 1.3 times
    the model in float32 (8 B parameters: 20 GiB). `fingerprint` identifies the base and its dtype.
    """
    folder = node_cache() / "spectra" / _file_name(fingerprint)
    file = folder / f"{_file_name(name)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)  # for the lock
    with FileLock(f"{file}.lock"):
        if not file.exists():
            left_OK = dense_spectrum(base_OI).left_OK.float().contiguous()
            save_whole(file, {"left": left_OK.cpu()})
            return left_OK
    return load_file(file)["left"].to(base_OI.device)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
