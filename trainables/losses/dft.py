"""Dynamic fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.losses.base import Loss, Tokens


class Dft(Loss):
    """Cross-entropy weighted by each target token's own probability: sum p nll / N."""

    name: ClassVar[str] = "dft"
    title: ClassVar[str] = "DFT"
    source: ClassVar[str] = "Wu et al. 2025, 2508.05629"

    def token_losses(self, tokens: Tokens) -> Any:
        """P nll, with no gradient through p = exp(-nll)."""
        return (-tokens.nll_T.detach()).exp() * tokens.nll_T
