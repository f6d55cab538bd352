"""How far hidden states moved between base and tuned model.

Shapes: T token positions, D width.
"""

from __future__ import annotations

import torch


def linear_cka_drift(X_TD: torch.Tensor, Y_TD: torch.Tensor) -> float:
    """1 - linear CKA: from 0, if one is the other rotated, scaled or shifted, up to 1.

    CKA = norm_F(Y^T X)^2 / (norm_F(X^T X) norm_F(Y^T Y)) of centred columns (Kornblith et al.
    2019, eq. 5), computed from T x T Gram matrices if there are fewer positions than features.

    Returns:
        The drift; 0 if both are constant over positions, 1 if only one is.
    """
    X_TD, Y_TD = (Z.double() - Z.double().mean(0) for Z in (X_TD, Y_TD))
    if X_TD.shape[0] <= X_TD.shape[1]:
        gram_X, gram_Y = X_TD @ X_TD.T, Y_TD @ Y_TD.T
        shared = (gram_X * gram_Y).sum()
    else:
        gram_X, gram_Y = X_TD.T @ X_TD, Y_TD.T @ Y_TD
        shared = (Y_TD.T @ X_TD).square().sum()
    norms = gram_X.norm() * gram_Y.norm()
    if norms == 0:
        return 0.0 if gram_X.norm() == gram_Y.norm() else 1.0
    return float((1 - shared / norms).clamp(0, 1))
