"""A GPU that an error has made useless for its process."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress


def end_with_lost_device(last_thing: Callable[[], None] = lambda: None) -> None:
    """End this process where its CUDA context is broken, as by an illegal access or an ECC error.

    Whatever it does there fails from then on, and so would each trial that it was given next; in
    another process they go on.

    Args:
        last_thing: to do before, such as to save a log.
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
        sys.stderr.flush()
        os._exit(1)
