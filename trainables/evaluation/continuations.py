"""Log-likelihoods of many continuations in few forward passes.

Requests with a common prefix share a row: the prefix appears once and the rest branches off after
it, as in a tree written depth first. A token attends to its ancestors alone and takes its position
from its depth, so it is computed as it would be in a row of its own.

Shapes: M models, N rows, S positions, U computed positions, P of these, T scored tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from trainables.process.collectives import divided

# A row of many short requests is no wider than this: attention costs the square of the width.
_NARROW = 64
# Multiplications per token in the linear layers over those per pair of tokens in their attention,
# in units of the hidden size; half the actual count, since masked attention is slower.
_TOKEN_OVER_PAIR = 3
# Most log-probabilities computed at once: 256 MiB.
_LOG_PROBS = 1 << 26


@dataclass(frozen=True)
class Request:
    """Tokens to score after a context of at least one token."""

    context: Sequence[int]
    continuation: Sequence[int]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token."""
        return (*self.context, *self.continuation[:-1])


@dataclass
class _Row:
    """One row being built: `path` leads down the tree to the end of the request added last."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    scored: list[tuple[int, int, int]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    branches: bool = False

    def shared(self, inputs: Sequence[int]) -> int:
        """Number of tokens that a request shares with the previous one."""
        pairs = zip(self.path, inputs, strict=False)
        return next(
            (depth for depth, (node, token) in enumerate(pairs) if self.tokens[node] != token),
            min(len(self.path), len(inputs)),
        )

    def add(self, number: int, request: Request, shared: int) -> None:
        """Add a request, branching off where it differs from the previous one."""
        self.branches |= shared < len(self.path)
        del self.path[shared:]
        for depth, token in enumerate(request.inputs[shared:], start=shared):
            self.path.append(len(self.tokens))
            self.tokens.append(token)
            self.depths.append(depth)
            self.ends.append(0)
        for node in self.path:
            self.ends[node] = len(self.tokens)
        first = len(request.context) - 1
        self.scored += [
            (node, target, number)
            for node, target in zip(self.path[first:], request.continuation, strict=True)
        ]


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass.

    Attributes:
        input_ids_NS, position_ids_NS: tokens, padded on the right, and their depths.
        ends_NS: where each token's descendants end, exclusive; None if no row branches, so that
            each token descends from all before it.
        positions_U: where logits are needed: row x S + position.
        where_T: index into `positions_U` of each scored token.
        targets_T, requests_T: the scored token, and the number of its request.
    """

    input_ids_NS: torch.Tensor
    position_ids_NS: torch.Tensor
    ends_NS: torch.Tensor | None
    positions_U: torch.Tensor
    where_T: torch.Tensor
    targets_T: torch.Tensor
    requests_T: torch.Tensor

    def visible(self, device: torch.device) -> torch.Tensor | None:
        """Which tokens each token attends to, shape (N, 1, S, S); None for all before it."""
        if self.ends_NS is None:
            return None
        keys_S = torch.arange(self.ends_NS.shape[1], device=device)
        queries_S1 = keys_S[:, None]
        ends_N1S = self.ends_NS.to(device)[:, None]
        return ((keys_S <= queries_S1) & (queries_S1 < ends_N1S))[:, None]


def lay_out(
    requests: Sequence[Request], share: bool, hidden: int, batch_tokens: int
) -> list[Batch]:
    """Put requests into rows and batches.

    Args:
        requests: each with a context and a continuation.
        share: whether rows may branch.
        hidden: the model's width, which decides whether sharing a row pays off.
        batch_tokens: most tokens of a batch, padding included; a longer row is a batch by itself.
    """
    rows: list[_Row] = []
    longest = max(len(request.inputs) for request in requests)
    width = max(longest, min(max(2 * longest, _NARROW), batch_tokens))
    for number in sorted(range(len(requests)), key=lambda number: requests[number].inputs):
        request = requests[number]
        shared = rows[-1].shared(request.inputs) if rows else 0
        if not rows or not _belongs(rows[-1], len(request.inputs), shared, share, hidden, width):
            rows.append(_Row())
            shared = 0
        rows[-1].add(number, request, shared)
    rows.sort(key=lambda row: (row.branches, len(row.tokens)), reverse=True)
    groups: list[list[_Row]] = []
    for row in rows:
        first = groups[-1][0] if groups else row
        is_full = groups and (len(groups[-1]) + 1) * len(first.tokens) > batch_tokens
        if not groups or is_full or first.branches != row.branches:
            groups.append([])
        groups[-1].append(row)
    return [_batch(group) for group in groups]


def _belongs(row: _Row, length: int, shared: int, share: bool, hidden: int, width: int) -> bool:
    """Whether a request goes into the row of the previous one."""
    before, after = len(row.tokens), len(row.tokens) + length - shared
    if shared == len(row.path):  # it continues where the other ends
        return not row.branches or after <= width
    pairs = after**2 - before**2 - length**2
    return share and after <= width and shared * _TOKEN_OVER_PAIR * hidden > pairs


def _batch(rows: Sequence[_Row]) -> Batch:
    width = len(rows[0].tokens)
    scored = [
        (number * width + node, target, request)
        for number, row in enumerate(rows)
        for node, target, request in row.scored
    ]
    positions = sorted({position for position, _, _ in scored})
    where = {position: index for index, position in enumerate(positions)}

    def padded(values: Sequence[Sequence[int]], padding: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[*row, *padding[len(row) :]] for row in values])

    zeros = [0] * width
    ends = padded([row.ends for row in rows], range(1, width + 1)) if rows[0].branches else None
    return Batch(
        input_ids_NS=padded([row.tokens for row in rows], zeros),
        position_ids_NS=padded([row.depths for row in rows], zeros),
        ends_NS=ends,
        positions_U=torch.tensor(positions),
        where_T=torch.tensor([where[position] for position, _, _ in scored]),
        targets_T=torch.tensor([target for _, target, _ in scored]),
        requests_T=torch.tensor([request for _, _, request in scored]),
    )


def score(
    batches: Sequence[Batch], forward: Callable[[Batch], torch.Tensor]
) -> list[list[tuple[float, bool]]]:
    """Log-likelihood of each continuation, and whether it is the model's own greedy choice.

    The workers of a group share the batches, see `divided`.

    Args:
        batches: from `lay_out`.
        forward: logits of M models at a batch's computed positions, shape (M, U, V).

    Returns:
        For each model, its answers in the order of the requests.
    """

    def scored(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return _target_log_probs(forward(batch), batch.where_T, batch.targets_T)

    log_probs, hits = zip(*divided(batches, scored), strict=True)
    log_probs_MT, hits_MT = torch.cat(log_probs, dim=1), torch.cat(hits, dim=1)
    requests_T = torch.cat([batch.requests_T for batch in batches])
    shape = (len(log_probs_MT), int(requests_T.max()) + 1)
    sums = torch.zeros(shape, dtype=torch.float64).index_add_(1, requests_T, log_probs_MT.double())
    misses = torch.zeros(shape, dtype=torch.long).index_add_(1, requests_T, (~hits_MT).long())
    sums = sums.float()  # rounded like the harness's own sum
    return [
        list(zip(likelihoods, greedy, strict=True))
        for likelihoods, greedy in zip(sums.tolist(), (misses == 0).tolist(), strict=True)
    ]


def _target_log_probs(
    logits_MUV: torch.Tensor, where_T: torch.Tensor, targets_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's log-probability, and whether it is the likeliest: (M, T), on the CPU.

    In fp32, a few positions at a time: a half has steps of up to one nat there, which make choices
    tie, and of those the first listed wins.
    """
    models, positions, vocabulary = logits_MUV.shape
    where_T, targets_T = where_T.to(logits_MUV.device), targets_T.to(logits_MUV.device)
    log_probs_MT = logits_MUV.new_empty((models, len(where_T)), dtype=torch.float32)
    hits_MT = torch.empty_like(log_probs_MT, dtype=torch.bool)
    at_once = max(1, _LOG_PROBS // (models * vocabulary))
    for start in range(0, positions, at_once):
        some_MPV = logits_MUV[:, start : start + at_once].log_softmax(-1, dtype=torch.float32)
        own_T = (where_T // at_once == start // at_once).nonzero()[:, 0]
        there_T, wanted_T = where_T[own_T] - start, targets_T[own_T]
        log_probs_MT[:, own_T] = some_MPV[:, there_T, wanted_T]
        hits_MT[:, own_T] = some_MPV.argmax(-1)[:, there_T] == wanted_T
    return log_probs_MT.cpu(), hits_MT.cpu()
