"""Dynamic fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.losses.base import Loss


class Dft(Loss):
    """Cross-entropy weighted by each target token's own probability: sum p nll / N."""

    name: ClassVar[str] = "dft"
    title: ClassVar[str] = "DFT"
    source: ClassVar[str] = "Wu et al. 2025, 2508.05629"
    weighs_tokens: ClassVar[bool] = True

    def token_weights(self, nll_T: Any) -> Any:
        """P = exp(-nll)."""
        return (-nll_T.detach()).exp()
