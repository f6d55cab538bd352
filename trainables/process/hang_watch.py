"""Ends a process in which nothing happens for too long; whoever started it restarts it."""

from __future__ import annotations

import faulthandler
import sys


class HangWatch:
    """A clock that ends the process when it runs out, after writing to stderr where it hung.

    The clock is a thread of the interpreter and needs no cooperation from what hangs. There is one
    per process.

    Args:
        minutes: time until it runs out; None never ends the process.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds = minutes * 60 if minutes else None

    def wind(self) -> None:
        """Start the clock, or start it over."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.stderr)

    def stop(self) -> None:
        """Stop the clock until it is wound again."""
        faulthandler.cancel_dump_traceback_later()
