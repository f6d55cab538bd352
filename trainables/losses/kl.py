"""Cross-entropy with a penalty on leaving the base."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from trainables.losses.base import Loss, Tokens


class Kl(Loss):
    """Cross-entropy, and beta times the divergence from the base on the same tokens.

    The loss is sum (nll + beta KL(base || tuned)) / N.

    Attributes:
        beta: weight of the divergence.
    """

    name: ClassVar[str] = "kl"
    title: ClassVar[str] = "SFT + KL"
    source: ClassVar[str] = "KL to the base on the labelled tokens"
    reads_logits: ClassVar[bool] = True
    reads_base: ClassVar[bool] = True

    beta: float = Field(default=0.1, ge=0)

    def token_losses(self, tokens: Tokens) -> Any:
        """Likelihood and divergence, nll + beta KL."""
        return tokens.nll_T + self.beta * divergence(tokens)


def divergence(tokens: Tokens) -> Any:
    """KL(base || tuned) at each token (T,), in nats, over the whole vocabulary."""
    base_TV, tuned_TV = tokens.base_TV.log_softmax(-1), tokens.logits_TV.log_softmax(-1)
    return (base_TV.exp() * (base_TV - tuned_TV)).sum(-1)
