"""Trials of several workers on a cluster of eight nodes with two fake GPUs each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

pytestmark = pytest.mark.ray


def placed(trial: TrialConfig, folder: Path, workers: list[int], **environment: str) -> Any:
    """What `placed_trials.py` tells of one trial for each number of workers."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1].joinpath("placed_trials.py"), "8", "2"]
        + [str(count) for count in workers],
        input=trial.model_dump_json(),
        env=kept | {"PLACED": str(folder / "placed"), "PYTHONPATH": str(Path.cwd())} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "placed").read_text())


@pytest.mark.slow
def test_groups_are_packed_where_they_fit_and_wait_for_each_other(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """More than there is room for at once; a trial takes 2 of 16 GPUs, or 4 on two nodes."""
    workers = [2, 4] * 5
    trial = make_trial("full", train={"batch_size": 8, "micro_batch_size": 1})
    told = placed(trial, tmp_path, workers)
    lay = [[count, nodes] for count, nodes, _ in told["placed"]]
    assert sorted(lay) == sorted([count, count // 2] for count in workers)
    assert told["left"] == 0


@pytest.mark.slow
def test_trials_lie_on_gpus_of_the_type_that_they_ask_for(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = make_trial("full", train={"batch_size": 8, "micro_batch_size": 1})
    told = placed(trial, tmp_path, [8, 4, 2], GPU_TYPE="B")
    assert sorted(told["placed"]) == [[2, 1, ["B"]], [4, 2, ["B"]], [8, 4, ["B"]]]
