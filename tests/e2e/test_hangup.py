"""The terminal goes, as with the ssh of a laptop that is closed: trials save a checkpoint first."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from command import PROJECT, run_command

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.cli import INTERRUPTED

pytestmark = pytest.mark.timeout(400)

STEPS = 400
ARGUMENTS = (
    "quickstart", "--num-trials", "2",
    "--set", "sampler=random",
    "--set", f"train.steps={STEPS}",
    "--set", "train.report_every=40",
    "--set", "eval.limit=8",
    "--set", "early_stopping=null",
    "--set", "confirm=null",
    "--set", "wandb.mode=disabled",
)  # fmt: skip


def run_and_hang_up(output_dir: Path) -> int:
    """Start the command on a terminal of its own, which goes at the first measurement."""
    command = [sys.executable, str(PROJECT / "tune" / "run.py"), *ARGUMENTS]
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` it would stay ignored
        os.execv(sys.executable, [*command, "--output-dir", str(output_dir)])  # noqa: S606
    ledger, deadline = Ledger(output_dir / "quickstart"), time.monotonic() + 150
    while not any(ledger.measurements(number) for number in range(2)):
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)  # the kernel tells all its processes, and takes nothing more that they write
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.slow
def test_trials_save_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path) -> None:
    assert run_and_hang_up(tmp_path) == INTERRUPTED
    ledger = Ledger(tmp_path / "quickstart")
    stopped = ledger.trials()
    assert {record.status for record in stopped} == {TrialStatus.RUNNING}
    for record in stopped:
        assert list(Path(record.config.output_dir).glob("checkpoints/step_*")), record.number
    again = run_command(*ARGUMENTS, "--output-dir", tmp_path)
    assert again.exit_code == 0, again.errors
    records = ledger.trials()
    assert {record.status for record in records} == {TrialStatus.COMPLETE}
    assert {record.failures for record in records} == {0}
