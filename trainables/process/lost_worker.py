"""What the workers of a group see of one that has died."""

from __future__ import annotations


def is_lost_worker(error: BaseException) -> bool:
    """Whether an operation of all workers failed for one of them or the network.

    The error is no fault of the trial, and those left may be spared it in a new group.
    """
    from torch.distributed import DistError

    from trainables.process.out_of_memory import is_out_of_memory

    if is_out_of_memory(error):
        return False
    of_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)  # it has no type of its own
    return of_gloo or isinstance(error, DistError)
