"""Trials of several workers on a cluster of eight nodes with two fake GPUs each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

pytestmark = pytest.mark.integration


def test_groups_are_packed_where_they_fit_and_wait_for_each_other(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """More than there is room for at once; a trial takes 2 of 16 GPUs, or 4 on two nodes."""
    workers = [2, 4] * 5
    trial = make_trial("full", train={"batch_size": 8, "micro_batch_size": 1})
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("placed_trials.py"), "8", "2"]
        + [str(count) for count in workers],
        input=trial.model_dump_json(),
        env=kept | {"PLACED": str(tmp_path / "placed"), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((tmp_path / "placed").read_text())
    assert sorted(told["placed"]) == sorted([count, count // 2] for count in workers)
    assert told["left"] == 0
