"""Ends a process in which nothing happens for too long; its parent restarts it.

The timer is a thread of the interpreter and needs no cooperation from what hangs. Each report
starts it; each pass of the model resets it, since an evaluation may take hours.
"""

from __future__ import annotations

import faulthandler
import sys
import time

_LEAST_S = 1.0  # between resets: each starts a thread

_minutes: float | None = None  # while the timer runs
_started_at = 0.0


def start(minutes: float | None) -> None:
    """Start or restart the timer; None leaves it as it is.

    When it runs out, it writes to stderr where the process hung, and ends it.
    """
    global _minutes, _started_at
    if minutes:
        _minutes, _started_at = minutes, time.monotonic()
        faulthandler.dump_traceback_later(minutes * 60, exit=True, file=sys.stderr)


def reset() -> None:
    """Restart the timer if it runs: something happened."""
    if _minutes and time.monotonic() - _started_at > _LEAST_S:
        start(_minutes)


def stop() -> None:
    """Stop the timer until it is started again."""
    global _minutes
    _minutes = None
    faulthandler.cancel_dump_traceback_later()
