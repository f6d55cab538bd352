"""What the workers of a group decide and compute together; all of them call each function.

A process that has joined no group is a group of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")


def world_size() -> int:
    """How many workers this process's group has."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_first_worker() -> bool:
    """Whether this process is the worker of rank 0."""
    return world_size() == 1 or torch.distributed.get_rank() == 0


def agreed(decision: T) -> T:
    """Rank 0's decision."""
    if world_size() == 1:
        return decision
    answer = [decision]
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def from_each(own: T) -> list[T]:
    """What each worker has, by rank."""
    answers = [own] * world_size()
    if len(answers) > 1:
        torch.distributed.all_gather_object(answers, own)
    return answers


def barrier() -> None:
    """Wait for all workers."""
    if world_size() > 1:
        torch.distributed.barrier()


def divided(items: Sequence[Item], compute: Callable[[Item], Result]) -> list[Result]:
    """Results of all items, in order, each computed by one worker.

    Each computes equally many, the last one again if need be, because a forward pass of a model
    that ZeRO-3 has sharded takes all workers. A result is plain data, or tensors on the CPU.
    """
    if (workers := world_size()) == 1:
        return [compute(item) for item in items]
    rank, last = torch.distributed.get_rank(), len(items) - 1
    own = [compute(items[min(turn + rank, last)]) for turn in range(0, len(items), workers)]
    results = from_each(own)
    return [results[number % workers][number // workers] for number in range(len(items))]
