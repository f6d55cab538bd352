"""Entropy-adaptive fine-tuning."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field

from trainables.losses.base import Loss, Tokens

_LIKELIEST = 20  # tokens that the entropy is of


class Eaft(Loss):
    """Cross-entropy weighted by the prediction's entropy: sum (H / ln K)^alpha nll / N.

    H is the entropy of the K = 20 likeliest tokens' probabilities among themselves. Where the model
    is sure of another token than the target, it learns little. The authors' code divides by 3.0.

    Attributes:
        alpha: exponent; with 0 it is the loss of SFT.
    """

    name: ClassVar[str] = "eaft"
    title: ClassVar[str] = "EAFT"
    source: ClassVar[str] = "Diao et al. 2026, 2601.02151"
    reads_logits: ClassVar[bool] = True

    alpha: float = Field(default=1.0, ge=0)

    def token_losses(self, tokens: Tokens) -> Any:
        """(H / ln K)^alpha nll, with no gradient through H."""
        count = min(_LIKELIEST, tokens.logits_TV.shape[-1])
        log_TK = tokens.logits_TV.detach().topk(count, dim=-1).values.log_softmax(-1)
        entropy_T = -(log_TK.exp() * log_TK).sum(-1)
        return (entropy_T / math.log(count)) ** self.alpha * tokens.nll_T
