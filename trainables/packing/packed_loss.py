"""The loss of a pass and its backward pass, without the logits of all its tokens at once.

If nothing follows the base's output head, logits are computed and backpropagated through it a few
tokens at a time: with a large vocabulary they would take more memory than all activations.

Shapes: K micro-batches, T labelled tokens, V vocabulary, F features: those of the last hidden
state or, if something follows the head, logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import count, groupby
from operator import itemgetter
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trainables.compat.transformers import recomputes_by_hook
from trainables.evaluation.evaluator import evaluating
from trainables.evaluation.logits import logits_at
from trainables.losses.base import Loss, Tokens
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

    def base_features(self, batch: Batch) -> torch.Tensor:
        """Those of the base alone (T, F), outside of what routes the batch through adapters."""
        with evaluating(self._base):
            return self.features(batch)

    def backward(
        self,
        features_TF: torch.Tensor,
        batch: Batch,
        losses: Sequence[Loss],
        base_TF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Backpropagate each micro-batch's own of the `losses` to the adapters it passed through.

        `base_TF`: the base's features, which a loss may read.

        Returns:
            The losses (K,), in nats per token.
        """
        shares_T = batch.tokens_K.reciprocal()[batch.slots_T]
        tiles = [tile.requires_grad_() for tile in features_TF.detach().split(_TILE_TOKENS)]
        losses_T = torch.cat(
            [
                self._token_losses(tile, first, batch, losses, base_TF, shares_T)
                for first, tile in zip(count(0, _TILE_TOKENS), tiles, strict=False)
            ]
        )
        grad_TF = torch.cat([tile.grad for tile in tiles if tile.grad is not None])
        if any(loss.weighs_tokens for loss in losses):
            # A token's features determine its own loss and no other.
            weights_T = _token_weights(losses, losses_T, batch)
            grad_TF.mul_(weights_T[:, None])
            losses_T = weights_T * losses_T
        features_TF.backward(grad_TF)
        sums_K = losses_T.new_zeros(len(batch.lengths)).index_add(0, batch.slots_T, losses_T)
        return sums_K / batch.tokens_K

    def _token_losses(
        self,
        features_TF: torch.Tensor,
        first: int,
        batch: Batch,
        losses: Sequence[Loss],
        base_TF: torch.Tensor | None,
        shares_T: torch.Tensor,
    ) -> torch.Tensor:
        """Losses of the tokens from `first` on; their weighted sum is backpropagated to features.

        Summing leaves each slot's gradient as it is, since a loss reaches only the adapter of its
        own slot.
        """
        last = first + len(features_TF)
        logits_TV, targets_T = self._logits(features_TF), batch.targets_T[first:last]
        nll_T = cross_entropy(logits_TV, targets_T, reduction="none")
        parts = []
        for loss, start, end in _runs(losses, batch.labelled, first, last):
            own, place = slice(start - first, end - first), slice(start, end)
            base_TV = None
            if loss.reads_base:
                assert base_TF is not None  # noqa: S101 - the engine gives it with such a loss
                with torch.no_grad():
                    base_TV = self._logits(base_TF[place])
            tokens = Tokens(nll_T[own], targets_T[own], logits_TV[own], base_TV)
            parts.append(loss.token_losses(tokens))
        losses_T = parts[0] if len(parts) == 1 else torch.cat(parts)
        losses_T.backward(shares_T[first:last])
        return losses_T.detach()

    def _logits(self, features_TF: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            logits_TV = features_TF if self._head is None else self._head(features_TF)
        return logits_TV.float()


def _runs(
    losses: Sequence[Loss], counts: Sequence[int], first: int, last: int
) -> Iterator[tuple[Loss, int, int]]:
    """The tokens from `first` up to `last` by their loss: each with where its tokens begin and end.

    Neighbouring micro-batches of one loss, with so many tokens each, are one.
    """
    end = 0
    for loss, group in groupby(zip(losses, counts, strict=True), key=itemgetter(0)):
        start, end = end, end + sum(count for _, count in group)
        if (from_ := max(start, first)) < (to := min(end, last)):
            yield loss, from_, to


def _token_weights(losses: Sequence[Loss], losses_T: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Each micro-batch's weights of its own tokens (T,); tokens are in the micro-batches' order."""
    own = (losses_T.split(batch.labelled), batch.sequences_T.split(batch.labelled))
    parts = zip(losses, *own, strict=True)
    return torch.cat([loss.token_weights(own_T, numbers_T) for loss, own_T, numbers_T in parts])


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
