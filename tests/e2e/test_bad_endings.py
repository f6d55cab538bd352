"""What the command says and leaves behind when something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, run_command

from trainables.records.ledger import Ledger

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SHORT = ("--set", "train.steps=4", "--set", "eval.limit=8", "--set", "wandb.mode=disabled")


@pytest.mark.slow
def test_wandb_without_a_key_is_told_on_the_terminal(tmp_path: Path) -> None:
    command = run_command(
        "quickstart", "--output-dir", tmp_path, "--num-trials", 1, *SHORT,
        "--set", "search.full=null", "--set", "wandb.mode=online",
        WANDB_PROJECT="mine", NETRC=str(tmp_path / "no-netrc"),
    )  # fmt: skip
    assert command.exit_code == 0
    assert command.output.count("warning: wandb.mode is online without a key") == 1
    assert Ledger(tmp_path / "quickstart").sweep().config["wandb"]["project"] == "mine"


def test_a_job_that_is_ended_before_its_first_trial_says_so(tmp_path: Path) -> None:
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
