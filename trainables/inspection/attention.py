"""How attention differs between base and tuned model.

Shapes: B prompts, H heads, Q queries, K keys (Q = K = S positions).
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch

from trainables.inspection.inspection_records import AttentionDrift


def js_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence over the last axis in bits: 0 if equal, 1 if disjoint.

    (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 (Hao et al., AACL 2020), which is
    H(m) - (H(p) + H(q)) / 2.
    """
    entropy_p, entropy_q = (torch.special.entr(x).sum(-1) for x in (p, q))
    entropy_middle = torch.special.entr((p + q) / 2).sum(-1)
    return ((entropy_middle - (entropy_p + entropy_q) / 2) / math.log(2)).clamp(0, 1)


def normalised_entropy(p: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Entropy over the last axis as a fraction of its maximum, log(visible); NaN for one key."""
    return torch.special.entr(p).sum(-1) / visible.log()


class LayerAttention:
    """Accumulates one layer's drift over batches of prompts; query i sees keys 0 to i."""

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self._sums_H: dict[str, torch.Tensor] = defaultdict(lambda: torch.tensor(0.0))
        self._counts_H: dict[str, torch.Tensor] = defaultdict(lambda: torch.tensor(0))

    def add(self, base_BHQK: torch.Tensor, tuned_BHQK: torch.Tensor, mask_BS: torch.Tensor) -> None:
        """Add a batch.

        Args:
            base_BHQK: attention probabilities of the base.
            tuned_BHQK: those of the tuned model, for the same tokens.
            mask_BS: 1 for tokens, 0 for the padding to their right.
        """
        base, tuned = base_BHQK.double(), tuned_BHQK.double()
        queries_B1Q = mask_BS.bool()[:, None]
        self._compare("", base, tuned, queries_B1Q, hidden_keys=0)
        # A query with all attention on key 0 has nothing left to compare.
        rest_BHQ = (base[..., 1:].sum(-1) > 0) & (tuned[..., 1:].sum(-1) > 0) & queries_B1Q
        base, tuned = _without_first_key(base), _without_first_key(tuned)
        self._compare("_without_first", base, tuned, rest_BHQ, hidden_keys=1)

    def result(self) -> AttentionDrift:
        """Means over the queries; 0 for a head without any."""
        means = {
            name: tuple((sums_H / self._counts_H[name].clamp_min(1)).tolist())
            for name, sums_H in self._sums_H.items()
        }
        return AttentionDrift(layer=self._layer, **means)

    def _compare(
        self,
        suffix: str,
        base: torch.Tensor,
        tuned: torch.Tensor,
        queries: torch.Tensor,
        hidden_keys: int,
    ) -> None:
        self._add(f"js{suffix}", js_divergence(base, tuned), queries)
        visible_Q = torch.arange(1, base.shape[-2] + 1, device=base.device) - hidden_keys
        visible_Q = visible_Q.double()
        shift = normalised_entropy(tuned, visible_Q) - normalised_entropy(base, visible_Q)
        self._add(f"entropy_shift{suffix}", shift, queries & (visible_Q > 1))

    def _add(self, name: str, value_BHQ: torch.Tensor, queries: torch.Tensor) -> None:
        queries = queries.expand_as(value_BHQ)
        self._sums_H[name] = self._sums_H[name] + value_BHQ.where(queries, 0).sum((0, 2)).cpu()
        self._counts_H[name] = self._counts_H[name] + queries.sum((0, 2)).cpu()


def _without_first_key(p_BHQK: torch.Tensor) -> torch.Tensor:
    """The attention on the other keys, normalised to sum to 1; zeros where there is none."""
    rest = p_BHQK[..., 1:]
    total = rest.sum(-1, keepdim=True)
    return rest / total.where(total > 0, 1)
