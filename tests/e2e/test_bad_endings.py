"""What the command says and leaves behind when something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from command import PROJECT


def test_job_that_is_ended_before_its_first_trial_says_so(tmp_path: Path) -> None:
    """SIGTERM, as of a batch system, while the base is evaluated: Ray's own handler would abort."""
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "tune" / "run.py"), "quickstart", "--output-dir", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
    )
    assert process.stdout is not None
    assert any("evaluating the base" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; the same command goes on"
    assert "Traceback" not in errors
