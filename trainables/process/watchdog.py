"""Ends a process in which nothing happens for too long; whoever started it restarts it.

The process's one clock is a thread of the interpreter and needs no cooperation from what hangs.
A report winds it, and so does each pass of the model, since an evaluation may take hours.
"""

from __future__ import annotations

import faulthandler
import sys
import time

_LEAST_S = 1.0  # between rewinds: each starts a thread

_minutes: float | None = None  # while the clock runs
_wound_at = 0.0


def wind(minutes: float | None) -> None:
    """Start the clock, or start it over; None leaves it as it is.

    When it runs out it writes to stderr where the process hung, and ends it.
    """
    global _minutes, _wound_at
    if minutes:
        _minutes, _wound_at = minutes, time.monotonic()
        faulthandler.dump_traceback_later(minutes * 60, exit=True, file=sys.stderr)


def rewind() -> None:
    """Start the clock over if it runs: something happened."""
    if _minutes and time.monotonic() - _wound_at > _LEAST_S:
        wind(_minutes)


def stop() -> None:
    """Stop the clock until it is wound again."""
    global _minutes
    _minutes = None
    faulthandler.cancel_dump_traceback_later()
