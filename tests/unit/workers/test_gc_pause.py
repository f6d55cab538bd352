"""The garbage collector, paused."""

from __future__ import annotations

import gc

import pytest

from trainables.gc_pause import gc_paused


def fail() -> None:
    assert not gc.isenabled()
    raise ImportError


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_as_before_after_a_pause_also_after_an_error(is_on: bool) -> None:
    try:
        if not is_on:
            gc.disable()
        with pytest.raises(ImportError), gc_paused():
            fail()
        assert gc.isenabled() is is_on
    finally:
        gc.enable()
