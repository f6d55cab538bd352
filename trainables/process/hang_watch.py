"""Ends a process in which nothing happens for too long; whoever started it restarts it.

The process's one clock is a thread of the interpreter and needs no cooperation from what hangs.
"""

from __future__ import annotations

import faulthandler
import sys


def wind(minutes: float | None) -> None:
    """Start the clock, or start it over; None leaves it as it is.

    When it runs out it writes to stderr where the process hung, and ends it.
    """
    if minutes:
        faulthandler.dump_traceback_later(minutes * 60, exit=True, file=sys.stderr)


def stop() -> None:
    """Stop the clock until it is wound again."""
    faulthandler.cancel_dump_traceback_later()
