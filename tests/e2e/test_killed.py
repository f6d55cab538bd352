"""The driver is interrupted or killed; the same command ends where an undisturbed one does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, run_command, wait_for
from measured import by_step

from trainables.records.ledger import Ledger
from trainables.records.schema import ItemScore, TrialStatus
from tune.command_line import INTERRUPTED

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# Random search does not learn, so what is suggested does not depend on who ends first.
ARGUMENTS = (
    "quickstart", "--num-trials", "4",
    "--set", "sampler=random",
    "--set", "train.steps=40",
    "--set", "train.report_every=10",
    "--set", "eval.limit=8",
    "--set", "wandb.mode=disabled",
)  # fmt: skip


def run_and_signal(output_dir: Path, measurements: int, given: signal.Signals) -> None:
    """Start the command and end it by a signal once so many measurements are on disk."""
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "tune" / "run.py"), *ARGUMENTS,
         "--output-dir", str(output_dir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
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


def items(ledger: Ledger) -> dict[int, list[ItemScore]]:
    """Each trial's outcome on every item at its end."""
    found = {record.number: ledger.items(record) for record in ledger.trials()}
    assert all(found.values())
    return found


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(signal.SIGINT, id="interrupted"),
        pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.slow),
    ],
)
def test_sweep_whose_driver_is_killed_ends_like_an_undisturbed_one(
    tmp_path: Path, first: signal.Signals
) -> None:
    """At first, and once more as it goes on."""
    undisturbed = run_command(*ARGUMENTS, "--output-dir", tmp_path / "undisturbed")
    assert undisturbed.exit_code == 0, undisturbed.errors
    expected = results(Ledger(tmp_path / "undisturbed" / "quickstart"))

    killed = tmp_path / "killed"
    ledger = Ledger(killed / "quickstart")
    run_and_signal(killed, 15, first)
    run_and_signal(killed, 55, signal.SIGKILL)
    before = {r.number: r for r in ledger.trials() if r.status is TrialStatus.COMPLETE}
    last = run_command(*ARGUMENTS, "--output-dir", killed)
    assert last.exit_code == 0, last.output + last.errors
    assert results(ledger) == expected
    assert items(ledger) == items(Ledger(tmp_path / "undisturbed" / "quickstart"))
    after = {record.number: record for record in ledger.trials()}
    assert {number: after[number] for number in before} == before  # not run twice
    assert any(record.attempt > 1 for record in after.values())
