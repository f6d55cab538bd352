"""The loss of a pass and its backward pass, without the logits of all its tokens at once.

If nothing follows the base's output head, logits are computed and backpropagated through it a few
tokens at a time: with a large vocabulary they would take more memory than all activations.

Shapes: K micro-batches, T labelled tokens, V vocabulary, F features: those of the last hidden
state or, if something follows the head, logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trainables.compat.transformers import recomputes_by_hook
from trainables.evaluation.logits import logits_at
from trainables.losses import Loss
from trainables.models.adaptable import recompute
from trainables.packing.packable import NotPackable
from trainables.packing.packed_batch import Batch

_TILE_TOKENS = 1024
Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]


class PassLoss:
    """Losses of passes through a frozen base.

    Args:
        base: a causal language model whose output head is not adapted.
        autocast: context of the forward computation.
        contexts: of each layer's forward pass and of its recomputation in the backward pass; None
            keeps activations rather than to recompute them.

    Raises:
        NotPackable: the base recomputes in ways of its own.
        UserError: it cannot recompute.
    """

    def __init__(
        self,
        base: Any,
        autocast: Callable[[], AbstractContextManager[Any]],
        contexts: Contexts | None = None,
    ) -> None:
        self._base, self._autocast = base, autocast
        self._head = base.get_output_embeddings() if ends_with_head(base) else None
        if contexts is not None:
            recompute(base, context_fn=contexts)
            # Code for older Transformers says itself how, and knows of no contexts.
            if not recomputes_by_hook(base):
                base.gradient_checkpointing_disable()
                raise NotPackable("its code recomputes activations in a way of its own")

    def features(self, batch: Batch) -> torch.Tensor:
        """The features (T, F) that the loss is computed from, with the graph of the pass."""
        with self._autocast():
            # Padding is on the right, where causal attention never looks: no mask needed.
            if self._head is None:
                return logits_at(self._base, batch.positions_T, input_ids=batch.input_ids_NS)
            output = self._base.base_model(input_ids=batch.input_ids_NS, use_cache=False)
            hidden: torch.Tensor = output.last_hidden_state
            return hidden.flatten(0, 1).index_select(0, batch.positions_T)

    def close(self) -> None:
        """Leave the base as it was."""
        self._base.gradient_checkpointing_disable()

    def backward(
        self, features_TF: torch.Tensor, batch: Batch, losses: Sequence[Loss]
    ) -> torch.Tensor:
        """Backpropagate each micro-batch's own of the `losses` to the adapters it passed through.

        Returns:
            The losses (K,), in nats per token.
        """
        weights_T = batch.tokens_K.reciprocal()[batch.slots_T]
        tiles = [tile.requires_grad_() for tile in features_TF.detach().split(_TILE_TOKENS)]
        targets, weights = (x_T.split(_TILE_TOKENS) for x_T in (batch.targets_T, weights_T))
        tile_parts = zip(tiles, targets, weights, strict=True)
        nll_T = torch.cat([self._nll(*parts) for parts in tile_parts])
        grad_TF = torch.cat([tile.grad for tile in tiles if tile.grad is not None])
        if any(loss.weighs_tokens for loss in losses):
            # A token's features determine its own negative log-likelihood and no other.
            weights_T = _token_weights(losses, nll_T, batch.slots_T)
            grad_TF.mul_(weights_T[:, None])
            nll_T = weights_T * nll_T
        features_TF.backward(grad_TF)
        sums_K = nll_T.new_zeros(len(batch.lengths)).index_add(0, batch.slots_T, nll_T)
        return sums_K / batch.tokens_K

    def _nll(
        self, features_TF: torch.Tensor, targets_T: torch.Tensor, weights_T: torch.Tensor
    ) -> torch.Tensor:
        """Negative log-likelihoods; their weighted sum is backpropagated to the features.

        Summing leaves each slot's gradient as it is, since a loss reaches only the adapter of its
        own slot.
        """
        with self._autocast():
            logits_TV = features_TF if self._head is None else self._head(features_TF)
        nll_T = cross_entropy(logits_TV.float(), targets_T, reduction="none")
        nll_T.backward(weights_T)
        return nll_T.detach()


def _token_weights(
    losses: Sequence[Loss], nll_T: torch.Tensor, slots_T: torch.Tensor
) -> torch.Tensor:
    """Each micro-batch's weights of its own tokens (T,); tokens are in the micro-batches' order."""
    counts = torch.bincount(slots_T, minlength=len(losses)).tolist()
    parts = zip(losses, nll_T.split(counts), strict=True)
    return torch.cat([loss.token_weights(own_T) for loss, own_T in parts])


@torch.no_grad()
def ends_with_head(base: Any) -> bool:
    """Whether the base's logits are exactly its output head's output for its last hidden state.

    Some models scale or cap logits, each under its own option name, so this runs the model.
    """
    # Several tokens, as the padding token may be embedded as zeros, which make all logits zero.
    inputs = {"input_ids": torch.arange(8, device=base.device)[None], "use_cache": False}
    head, output = base.get_output_embeddings(), base.base_model(**inputs)
    hidden = getattr(output, "last_hidden_state", None)  # a base without a backbone has but logits
    if hidden is None or hidden.shape[-1] != getattr(head, "in_features", None):
        return False
    return bool(torch.equal(head(hidden), base(**inputs).logits))
