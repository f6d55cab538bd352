"""What libraries say while a command loads models, and after."""

from __future__ import annotations

import logging

import pytest
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from analysis.quiet import quiet_libraries


@pytest.mark.parametrize("was_quiet", [False, True])
def test_libraries_are_as_loud_after_as_before(
    was_quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepspeed, had_bars = logging.getLogger("DeepSpeed"), is_progress_bar_enabled()
    monkeypatch.setattr(deepspeed, "disabled", was_quiet)
    (disable_progress_bar if was_quiet else enable_progress_bar)()
    try:
        with quiet_libraries():
            assert deepspeed.disabled
            assert not is_progress_bar_enabled()
        assert deepspeed.disabled is was_quiet
        assert is_progress_bar_enabled() is not was_quiet
    finally:
        (enable_progress_bar if had_bars else disable_progress_bar)()
