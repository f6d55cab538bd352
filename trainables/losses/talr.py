"""Token-adaptive loss reweighting."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from trainables.losses.base import Loss


class Talr(Loss):
    """Cross-entropy with weights that fall with a token's loss: w = max(p^(1/tau), floor).

    w = exp(-l / tau) minimises sum w l + tau sum w ln w on the simplex, but for its norm. tau is
    the median over the micro-batch's sequences of their mean loss. The paper was not at hand: this
    is as others describe it.

    Attributes:
        floor: the least weight; with 1 it is the loss of SFT.
    """

    name: ClassVar[str] = "talr"
    title: ClassVar[str] = "TALR"
    source: ClassVar[str] = "Lin et al. 2025, 2509.20758, at second hand"

    floor: float = Field(default=0.01, ge=0, le=1)

    def token_weights(self, losses_T: Any, sequences_T: Any) -> Any:
        """max(exp(-l / tau), floor)."""
        import torch

        _, numbers_T, counts_N = sequences_T.unique(return_inverse=True, return_counts=True)
        sums_N = losses_T.new_zeros(len(counts_N)).index_add(0, numbers_T, losses_T)
        tau = torch.quantile(sums_N / counts_N, 0.5)
        # A tau of 0, where all is learned, leaves 0 / 0 for tokens without a loss.
        return (-losses_T / tau.clamp(min=1e-6)).exp().clamp(min=self.floor)
