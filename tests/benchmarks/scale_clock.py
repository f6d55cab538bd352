"""The time of a simulated driver: it computes for real, and all else takes no time at all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

TUNE, OURS, SAMPLER, RAY = "tune", "ours", "sampler", "ray"


class DriverClock:
    """Virtual seconds, as the one thread of a driver lives through them.

    While the driver's code runs, they go on with the processor seconds that it really takes. What
    Ray's core would take is charged, and a wait skips to its end. Whatever becomes ready meanwhile
    queues up behind the driver, as it would on a cluster.

    Args:
        processor: seconds that the process has computed. Those of all threads, where not told
            otherwise, since they share one interpreter.

    Attributes:
        kind: of the event that the driver is busy with.
        spent: processor seconds by kind of event and by whose code took them.
    """

    def __init__(self, processor: Callable[[], float] = time.process_time) -> None:
        self._processor = processor
        self._mark = processor()
        self._now = 0.0
        self._owners = [TUNE]
        self._is_stopped = False
        self.kind = ""
        self.spent: Counter[tuple[str, str]] = Counter()

    def now(self) -> float:
        """Seconds since the clock was made."""
        if not self._is_stopped:
            mark = self._processor()
            self._count(mark - self._mark, self._owners[-1])
            self._mark = mark
        return self._now

    def charge(self, owner: str, seconds: float) -> None:
        """The driver computes for so long, in code that the simulation has replaced."""
        self.now()
        self._count(seconds, owner)

    def sleep(self, seconds: float) -> None:
        """The driver waits, for a disk or for something to happen, and computes nothing."""
        self.now()
        self._now += seconds

    def skip_to(self, moment: float) -> None:
        """The same, until a moment; at once where it has passed."""
        self.sleep(max(0.0, moment - self.now()))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What the simulation itself computes takes no time."""
        if self._is_stopped:
            yield
            return
        self.now()
        self._is_stopped = True
        try:
            yield
        finally:
            self._is_stopped = False
            self._mark = self._processor()

    def attribute(self, thing: Any, owner: str, *names: str) -> None:
        """Count what these methods of an object take as that owner's."""
        for name in names:
            setattr(thing, name, self._counted(getattr(thing, name), owner))

    def as_module(self) -> Any:
        """What stands in for the module `time` in code that shall live in virtual time."""
        return SimpleNamespace(time=self.now, monotonic=self.now, sleep=self.sleep)

    def _counted(self, call: Callable[..., Any], owner: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.now()
            self._owners.append(owner)
            try:
                return call(*args, **kwargs)
            finally:
                self.now()
                self._owners.pop()

        return counted

    def _count(self, seconds: float, owner: str) -> None:
        self._now += seconds
        self.spent[self.kind, owner] += seconds
