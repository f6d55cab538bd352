"""An evaluation by a group of workers: each computes some of the batches, all have the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def divided(items: Sequence[Item], compute: Callable[[Item], Result], workers: int) -> list[Result]:
    """Results of all items, in order, each computed by one worker.

    Every worker calls this with the same items. Each computes equally many, the last one again if
    need be, because a forward pass of a model that ZeRO-3 has sharded takes all workers.

    Args:
        items: what to compute results of.
        compute: makes a result of an item: plain data, or tensors on the CPU.
        workers: number in the group.
    """
    if workers == 1:
        return [compute(item) for item in items]
    rank, last = torch.distributed.get_rank(), len(items) - 1
    own = [compute(items[min(turn + rank, last)]) for turn in range(0, len(items), workers)]
    results: list[list[Result]] = [[] for _ in range(workers)]
    torch.distributed.all_gather_object(results, own)
    return [results[number % workers][number // workers] for number in range(len(items))]


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a forward pass takes all workers, as ZeRO-3 has sharded the parameters."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
