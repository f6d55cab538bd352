"""Work beside other work: it runs meanwhile, and its error is not lost."""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread, Timer
from typing import TYPE_CHECKING

import pytest

from trainables.process.background import finish, in_background

if TYPE_CHECKING:
    from collections.abc import Callable


def test_both_run_at_once() -> None:
    of_work, of_body = Event(), Event()

    def work() -> None:
        of_work.set()
        assert of_body.wait(10)

    with in_background(work):
        assert of_work.wait(10)
        of_body.set()


def fail() -> None:
    raise OSError("disk full")


def test_who_waits_gets_the_error() -> None:
    waits = False
    with pytest.raises(OSError, match="disk full"), in_background(fail) as wait_for_it:
        waits = waited_for(wait_for_it)
    assert waits


def waited_for(wait: Callable[[], None]) -> bool:
    with pytest.raises(OSError, match="disk full"):
        wait()
    return True


def test_who_does_not_wait_gets_it_at_the_end() -> None:
    went_on = False
    with pytest.raises(OSError, match="disk full"), in_background(fail):
        went_on = True
    assert went_on


def test_an_error_of_the_body_wins_and_the_work_is_done() -> None:
    done = Event()
    of_body = Event()

    def work() -> None:
        of_body.wait(10)
        done.set()

    def body() -> None:
        of_body.set()
        raise ValueError("of the body")

    with pytest.raises(ValueError, match="of the body"), in_background(work):
        body()
    assert done.is_set()


@pytest.mark.parametrize("fails", [False, True])
def test_who_ends_the_process_can_wait_for_all_that_runs(fails: bool) -> None:
    """The end of a checkpoint's upload, say, which the thread that began it waits for, too."""
    began, may_end, ended = Event(), Event(), Event()

    def work() -> None:
        began.set()
        assert may_end.wait(10)
        ended.set()
        if fails:
            fail()

    def trial() -> None:
        with suppress(OSError), in_background(work):
            pass

    other = Thread(target=trial)
    other.start()
    assert began.wait(10)
    Timer(0.2, may_end.set).start()
    finish()
    assert ended.is_set()
    other.join(10)
    finish()  # nothing runs any more
