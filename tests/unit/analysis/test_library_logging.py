"""What libraries say while a command loads models, and after."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from builders import record_sweep, trial
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from analysis.library_logging import quiet_libraries


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


def test_who_reads_only_the_first_lines_sees_no_traceback(tmp_path: Path) -> None:
    record_sweep(tmp_path, trial(0))
    command = subprocess.Popen(
        [sys.executable, "-m", "analysis", "report", str(tmp_path), "--format", "csv"],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout
    assert command.stderr
    command.stdout.close()
    with command.stderr as told:
        assert told.read() == ""
    assert command.wait() == 1
