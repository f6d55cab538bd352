"""Work beside other work: it runs meanwhile, and its error is not lost."""

from __future__ import annotations

from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING

import pytest

from trainables.process.background import in_background

if TYPE_CHECKING:
    from collections.abc import Callable


def fail() -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("waits", [False, True])
def test_an_error_is_raised_when_waiting_or_at_the_end(waits: bool) -> None:
    seen: list[str] = []

    def body(wait: Callable[[], None]) -> None:
        with suppress(OSError):
            wait() if waits else None
            seen.append("went on")
        seen.append("ended")

    with pytest.raises(OSError, match="disk full"), in_background(fail) as wait:
        body(wait)
    assert seen == (["ended"] if waits else ["went on", "ended"])


def test_an_error_of_the_body_wins_and_the_work_is_finished() -> None:
    began, body_ran, done = Event(), Event(), Event()

    def work() -> None:
        began.set()
        body_ran.wait(10)
        done.set()

    def body() -> None:
        assert began.wait(10)
        body_ran.set()
        raise ValueError("of the body")

    with pytest.raises(ValueError, match="of the body"), in_background(work):
        body()
    assert done.is_set()
