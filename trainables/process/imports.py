"""Large libraries, imported without looking for garbage meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """Pause Python's garbage collector while the body imports.

    torch, Transformers and PEFT leave some 600,000 objects, all of them to stay. The collector
    walks through them again and again as they come, a fifth of the time that imports take, and
    every process of a trial imports.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
