"""A sweep that looks inside its trials' models when they are done."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, run_command

from analysis.results.default_selection import default_selection
from analysis.sweep_settings import SweepSettings
from trainables.inspection.inspection_records import InspectionFolder
from trainables.records.ledger import Ledger
from tune.cli import INTERRUPTED

pytestmark = pytest.mark.timeout(600)
SMALL = (
    "budget.trials=2",
    "search.full=null",  # DeepSpeed takes its time to start
    "eval.limit=20",
    "eval.kl_prompts=0",
    "train.steps=4",
    "wandb.mode=disabled",
)


def interrupted_as_it_inspects(output_dir: Path) -> None:
    overrides = [part for setting in (*SMALL, "inspect=true") for part in ("--set", setting)]
    command = [str(PROJECT / "tune" / "run.py"), "--output-dir", str(output_dir), *overrides]
    driver = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        for line in driver.stdout:
            if line.startswith("inspecting"):
                driver.send_signal(signal.SIGINT)
                break
        output, _ = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == INTERRUPTED, output
    assert "quickstart: 2 trials: 2 complete" in output
    assert output.rstrip().endswith("# goes on")


@pytest.mark.slow
def test_an_option_that_can_be_turned_on_afterwards(tmp_path: Path) -> None:
    def run(*settings: str) -> None:
        overrides = [part for setting in settings for part in ("--set", setting)]
        command = run_command("quickstart", "--output-dir", tmp_path, *overrides)
        assert command.exit_code == 0, command.output + command.errors

    run(*SMALL)
    ledger, inside = Ledger(tmp_path / "quickstart"), InspectionFolder(tmp_path / "quickstart")
    assert not inside.root.exists()
    finished = ledger.trials()
    interrupted_as_it_inspects(tmp_path)
    run(*SMALL, "inspect=true")
    assert ledger.trials() == finished
    records = [found for trial in finished if (found := inside.read(trial.number))]
    assert (
        [r.number for r in records]
        == default_selection(SweepSettings.of(ledger.sweep()), finished)
        != []
    )
    for record in records:
        assert record.reason is None
        assert len(record.matrices) == 7 * 4
        assert len(record.attention) == len(record.representation) == 4
