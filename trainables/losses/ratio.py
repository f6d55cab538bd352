"""`Ratio`: losses of how much likelier than the base the model makes a token.

With r = p / p_base of a target token they minimise -phi(r), where SFT has phi = ln r. Others grow
less and less, or fall again: what the base finds unlikely stays less likely than SFT would make it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.losses.base import Loss, Tokens


class Ratio(Loss):
    """Minimises -phi(r), the mean over tokens."""

    reads_base: ClassVar[bool] = True

    def phi(self, ratio_T: Any) -> Any:
        """What is maximised, from r (T,)."""
        raise NotImplementedError

    def token_losses(self, tokens: Tokens) -> Any:
        """-phi(r)."""
        from torch.nn.functional import cross_entropy

        base_T = cross_entropy(tokens.base_TV, tokens.targets_T, reduction="none")
        return -self.phi((base_T - tokens.nll_T).exp())
