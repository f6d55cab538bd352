"""Work in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Run `work` in a thread while the body runs; it is finished when the body is left.

    Yields a function that waits for the work and raises its error. An error in the body wins.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        future = thread.submit(work)
        yield future.result
    future.result()
