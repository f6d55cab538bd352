"""`Loss`: what training minimises. Importing a loss loads no heavy library.

Shapes: T labelled tokens, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trainables.named import Named


@dataclass(frozen=True)
class Tokens:
    """Some labelled tokens of a micro-batch, as the model and the base predict them.

    Attributes:
        nll_T: negative log-likelihoods in nats, with a gradient.
        targets_T: the tokens.
        logits_TV: of the model, in fp32, with a gradient; None unless the loss reads them.
        base_TV: logits of the base, in fp32; None unless the loss reads them.
    """

    nll_T: Any
    targets_T: Any
    logits_TV: Any = None
    base_TV: Any = None


class Loss(Named):
    """What training minimises; one subclass and one file a loss. Its fields are searched.

    The loss of a step is sum w l / N over its N labelled tokens, in nats/token, with l from
    `token_losses` and w from `token_weights`.

    Attributes:
        reads_logits: whether `token_losses` needs the model's logits.
        reads_base: whether it needs those of the base, too.
        reads_base_weights: whether `penalty` needs the base's weights: not for adapters, which
            have no counterpart in the base.
    """

    reads_logits: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False
    reads_base_weights: ClassVar[bool] = False

    def token_losses(self, tokens: Tokens) -> Any:
        """Each token's loss (T,), with a gradient, from its own prediction alone."""
        return tokens.nll_T

    def token_weights(self, losses_T: Any, sequences_T: Any) -> Any:
        """Each token's weight (T,), without a gradient, from a whole micro-batch.

        Args:
            losses_T: what `token_losses` gave, without a gradient.
            sequences_T: the number of the sequence that each token is in.
        """
        return losses_T.new_ones(losses_T.shape)

    def penalty(self, model: Any, base: Any) -> Any:
        """A term added to the loss of a step, a scalar tensor; None if there is none."""
        return None

    @property
    def needs_base(self) -> bool:
        """Whether the base is needed beside the model that is trained."""
        return self.reads_base or self.reads_base_weights

    @property
    def is_cross_entropy(self) -> bool:
        """Whether it is the mean of the negative log-likelihoods."""
        return type(self).token_losses is Loss.token_losses and not self.weighs_tokens

    @property
    def weighs_tokens(self) -> bool:
        """Whether weights can differ from one."""
        return type(self).token_weights is not Loss.token_weights

    @property
    def label(self) -> str:
        """Its fields, such as `floor 0.01`; may be empty."""
        fields = type(self).model_fields
        return ", ".join(f"{field.replace('_', ' ')} {getattr(self, field):g}" for field in fields)
