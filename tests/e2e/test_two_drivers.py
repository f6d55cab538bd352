"""A driver whose sweep another took over, as it stood still for too long, stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import PROJECT, wait_for
from logged_runs import logged_runs

from trainables.records.ledger import Ledger
from tune.folder.lock import LockRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def state(ledger: Ledger) -> dict[str, bytes]:
    """All records of a sweep, as they lie on disk."""
    files = [ledger.folder.sweep_json, *ledger.folder.trials.glob("*/*.json*")]
    return {str(file): file.read_bytes() for file in files if file.exists()}


def test_it_writes_no_more_and_says_who_has_the_sweep(tmp_path: Path) -> None:
    arguments = [
        "quickstart", "--output-dir", str(tmp_path), "--num-trials", "6",
        "--set", "train.steps=400", "--set", "eval.limit=8", "--set", "wandb.mode=offline",
    ]  # fmt: skip
    ledger = Ledger(tmp_path / "quickstart")
    driver = subprocess.Popen(
        [sys.executable, str(PROJECT / "tune" / "run.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        wait_for(lambda: ledger.measurements(0), driver)
        # Another machine takes over while this one stands still, as it may after its time.
        driver.send_signal(signal.SIGSTOP)
        holder = LockRecord.model_validate_json(ledger.folder.lock.read_bytes())
        taker = holder.model_copy(
            update={"token": "taker", "process": holder.process.model_copy(update={"host": "b"})}
        )
        taken = ledger.folder.lock_after(holder.token)
        taken.write_text(taker.model_dump_json())
        time.sleep(holder.interval)
        driver.send_signal(signal.SIGCONT)
        before: dict[str, bytes] = {}
        while (now := state(ledger)) != before:  # until its heartbeat, which is overdue, has come
            before = now
            time.sleep(2)
        output, errors = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == 2, output + errors
    assert "was taken over by another driver" in errors
    assert "Traceback" not in errors
    assert state(ledger) == before
    # Made at a sweep's end: here they would be older than the other driver's.
    assert not ledger.folder.results_csv.exists()
    assert not ledger.folder.study.exists()
    # W&B would show a run that ends as finished, while the other driver trains it.
    [begun] = logged_runs(ledger.folder.root, ledger.trial(0).config.trial_id)
    assert begun.steps
    assert begun.exit_codes == []
    assert taken.read_text() == taker.model_dump_json()
