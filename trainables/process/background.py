"""Work in the background, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

_thread = ThreadPoolExecutor(max_workers=1)


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Run `work` in a thread while the body runs; it is finished when the body is left.

    Yields a function that waits for the work and raises its error. An error in the body wins.
    """
    future = _thread.submit(work)
    try:
        yield future.result
    finally:
        wait([future])
    future.result()


def finish() -> None:
    """Wait until no work runs in the background of this process, whatever its outcome."""
    _thread.submit(lambda: None).result()
