"""A GPU that an error has made useless for its process."""

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
