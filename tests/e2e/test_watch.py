"""A real sweep, watched by another process from its first file to its last."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import PROJECT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_sweep_is_seen_from_the_outside_while_it_runs(tmp_path: Path) -> None:
    sweep = [sys.executable, "tune/run.py", "quickstart", "--num-trials", "2", "--output-dir",
             str(tmp_path), "--set", "train.steps=30", "--set", "search.full=null",
             "--set", "eval.limit=8", "--set", "wandb.mode=disabled"]  # fmt: skip
    running = subprocess.Popen(sweep, cwd=PROJECT, stdout=subprocess.DEVNULL)
    folder = tmp_path / "quickstart"
    while not (folder / "sweep.log").exists():
        assert running.poll() is None
        time.sleep(0.1)
    watching = subprocess.run(
        [sys.executable, "-m", "analysis", "watch", str(folder)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )
    assert watching.returncode == 0, watching.stderr
    assert running.wait(120) == 0
    lines = watching.stdout.splitlines()
    for number in (0, 1):
        told = [line for line in lines if line.startswith(f"trial {number} ")]
        assert told[0].startswith(f"trial {number} running, ")  # seen before it had ended
        assert told[-1].startswith(f"trial {number} complete, step 30: loss ")
    [header] = [line for line in lines if line.startswith("quickstart: ")]
    assert header.startswith("quickstart: 2/2 finished, ")
    assert lines[-1].endswith("the sweep has ended")
