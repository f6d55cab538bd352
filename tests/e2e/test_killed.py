"""A sweep whose driver is interrupted and killed ends like an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, run_command, wait_for
from measured import by_step

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.cli import INTERRUPTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Random search does not learn, so what is suggested does not depend on who ends first.
ARGUMENTS = (
    "quickstart", "--num-trials", "4",
    "--set", "sampler=random",
    "--set", "train.steps=40",
    "--set", "train.report_every=10",
    "--set", "eval.limit=8",
    "--set", "wandb.mode=disabled",
)  # fmt: skip


def start(output_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "tune" / "run.py"), *ARGUMENTS,
         "--output-dir", str(output_dir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    output_dir = tmp_path_factory.mktemp("undisturbed")
    running = start(output_dir)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 0, errors
    return Ledger(output_dir / "quickstart")


def run_and_signal(output_dir: Path, measurements: int, given: signal.Signals) -> None:
    """Start the command and end it by a signal once so many measurements are on disk."""
    process = start(output_dir)
    ledger = Ledger(output_dir / "quickstart")
    try:
        wait_for(
            lambda: sum(len(ledger.measurements(n)) for n in range(4)) >= measurements, process
        )
        process.send_signal(given)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    if given is signal.SIGINT:
        assert process.returncode == INTERRUPTED, errors
        assert "Traceback" not in errors
    assert TrialStatus.RUNNING in {record.status for record in ledger.trials()}


def results(ledger: Ledger) -> dict[int, tuple[object, object, object]]:
    """What a sweep found: each trial's parameters, status and history."""
    return {
        record.number: (
            record.params,
            record.status,
            by_step(ledger.measurements(record.number)),
        )
        for record in ledger.trials()
    }


def test_sweep_whose_driver_is_interrupted_and_killed_ends_like_an_undisturbed_one(
    undisturbed: Ledger, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "quickstart")
    run_and_signal(tmp_path, 15, signal.SIGINT)
    run_and_signal(tmp_path, 55, signal.SIGKILL)
    before = {r.number: r for r in ledger.trials() if r.status is TrialStatus.COMPLETE}
    last = run_command(*ARGUMENTS, "--output-dir", tmp_path)
    assert last.exit_code == 0, last.output + last.errors
    assert results(ledger) == results(undisturbed)
    for record, other in zip(ledger.trials(), undisturbed.trials(), strict=True):
        assert ledger.items(record) == undisturbed.items(other) != []
    after = {record.number: record for record in ledger.trials()}
    assert {number: after[number] for number in before} == before  # not run twice
    assert any(record.attempt > 1 for record in after.values())
