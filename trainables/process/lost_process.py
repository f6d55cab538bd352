"""What a process can lose beside itself: its GPU, to an error, and other workers of its group."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress


def end_with_lost_device(last_thing: Callable[[], None] = lambda: None) -> None:
    """End this process if its CUDA context is broken, as after an illegal access or an ECC error.

    From then on everything it does on the GPU fails, and so would each trial it is given next; in
    another process they can go on. The last thing is called before, for example to save a log.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        traceback.print_exc()
        with suppress(OSError):
            last_thing()
        os._exit(1)


def is_lost_worker(error: BaseException) -> bool:
    """Whether an operation of all workers failed for one of them or the network.

    The error is no fault of the trial, and those left may be spared it in a new group.
    """
    from torch.distributed import DistError

    from trainables.process.out_of_memory import is_out_of_memory

    if is_out_of_memory(error):
        return False
    is_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)  # it has no type of its own
    return is_gloo or isinstance(error, DistError)
