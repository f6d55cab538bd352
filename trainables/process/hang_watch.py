"""Ending a process in which nothing happens for too long; whoever started it starts it again."""

from __future__ import annotations

import faulthandler
import sys


class HangWatch:
    """A clock that ends the process when it runs down, after writing to stderr where it hung.

    The clock is the interpreter's own thread and needs no cooperation of what hangs. A process has
    one such clock.

    Args:
        minutes: for which it runs; None never ends anything.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds = minutes * 60 if minutes else None

    def wind(self) -> None:
        """Let it run from the beginning."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.stderr)

    def stop(self) -> None:
        """Stop it until it is wound again."""
        faulthandler.cancel_dump_traceback_later()
