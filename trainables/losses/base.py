"""`Loss`: what training minimises. Importing a loss loads no heavy library.

Shapes: T labelled tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.named import Named


class Loss(Named):
    """What training minimises; one subclass and one file a loss. Its fields are searched.

    Attributes:
        weighs_tokens: whether `token_weights` differ from one.
    """

    weighs_tokens: ClassVar[bool] = False

    def token_weights(self, nll_T: Any) -> Any:
        """Weight of each token's negative log-likelihood (T,) in the loss, without a gradient.

        The loss of a step is sum w nll / N over its N labelled tokens, in nats/token.
        """
        return nll_T.new_ones(nll_T.shape)

    @property
    def label(self) -> str:
        """Its fields, such as `floor 0.01`; may be empty."""
        fields = type(self).model_fields
        return ", ".join(f"{field.replace('_', ' ')} {getattr(self, field):g}" for field in fields)
