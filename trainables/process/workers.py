"""What the workers of a group decide and compute together; all of them call each function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")


def agreed(decision: T, workers: int) -> T:
    """Rank 0's decision."""
    if workers == 1:
        return decision
    answer = [decision]
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def from_each(own: T, workers: int) -> list[T]:
    """What each worker has, by rank."""
    if workers == 1:
        return [own]
    answers = [own] * workers
    torch.distributed.all_gather_object(answers, own)
    return answers


def barrier(workers: int) -> None:
    """Wait for all workers."""
    if workers > 1:
        torch.distributed.barrier()


def divided(items: Sequence[Item], compute: Callable[[Item], Result], workers: int) -> list[Result]:
    """Results of all items, in order, each computed by one worker.

    Each computes equally many, the last one again if need be, because a forward pass of a model
    that ZeRO-3 has sharded takes all workers. A result is plain data, or tensors on the CPU.
    """
    if workers == 1:
        return [compute(item) for item in items]
    rank, last = torch.distributed.get_rank(), len(items) - 1
    own = [compute(items[min(turn + rank, last)]) for turn in range(0, len(items), workers)]
    results = from_each(own, workers)
    return [results[number % workers][number // workers] for number in range(len(items))]
