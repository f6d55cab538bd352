"""A cluster whose head is killed while a sweep runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lone_head import free_port, head, kill, share_token
from small_trials import SMALL

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

if TYPE_CHECKING:
    from trainables.evaluation.base_scores import Base

pytestmark = pytest.mark.ray

HERE = Path(__file__).parents[1]
TRIALS = 5
TWO_CORES = ("--num-cpus", "2")
SETTINGS = (
    *SMALL,
    f"budget.trials={TRIALS}",
    "resources.max_concurrent=2",
    "resources.lora.cpus_per_worker=0.5",
    "resources.full.cpus_per_worker=0.5",
    "sampler=random",
    "wandb.mode=disabled",
)


def start(address: str, folder: Path) -> subprocess.Popen[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [
            *(sys.executable, str(HERE / "fake_command.py"), "quickstart", "--address", address),
            *("--output-dir", str(folder), *settings),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(ledger: Ledger) -> dict[int, object]:
    if not ledger.exists():
        return {}
    return {r.number: r for r in ledger.trials() if r.status is not TrialStatus.RUNNING}


def test_a_lost_head_ends_the_command(
    base: Base, base_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_token(monkeypatch)
    (tmp_path / ".base").symlink_to(base_cache)
    ledger = Ledger(tmp_path / "quickstart")
    with head(free_port(), *TWO_CORES) as (address, ray):
        driver = start(address, tmp_path)
        while driver.poll() is None and not ended(ledger):
            time.sleep(0.05)
        kill(ray)
        output, _ = driver.communicate(timeout=60)
    before = ended(ledger)
    assert driver.returncode == 3, output
    assert output.count("the cluster's head answers no more") == 1
    assert "Traceback" not in output
    assert 1 <= len(before) < TRIALS
