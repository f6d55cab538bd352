"""The command on a disk that is full: one clear message, and it goes on once there is room."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from command import run_command
from small_disk import fill, small_disk

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(500)


def fill_at_first_measurement(disk: Path, ledger: Ledger) -> None:
    deadline = time.monotonic() + 270
    while time.monotonic() < deadline:
        if ledger.folder.metrics(0).exists():
            fill(disk, leave=65536)  # records can still be written, weights cannot
            return
        time.sleep(0.05)


@pytest.mark.slow
def test_command_says_so_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256m") as disk:
        ledger = Ledger(disk / "quickstart")
        arguments = [
            "quickstart", "--output-dir", disk, "--num-trials", 2,
            "--set", "search.full=null", "--set", "train.steps=30", "--set", "eval.limit=8",
            "--set", "wandb.mode=disabled",
        ]  # fmt: skip
        filling = threading.Thread(target=fill_at_first_measurement, args=(disk, ledger))
        filling.start()
        full = run_command(*arguments)
        filling.join()
        assert full.exit_code == 2, full.output + full.errors
        assert f"disk full: {disk}/quickstart" in full.errors
        assert " MiB free of 256.0 MiB" in full.errors
        assert "run the same command again" in full.errors
        assert "Traceback" not in full.errors
        before = ledger.trials()
        assert before

        (disk / "filler").unlink()
        again = run_command(*arguments)
        assert again.exit_code == 0, again.output + again.errors
        records = ledger.trials()
        assert [record.status for record in records] == [TrialStatus.COMPLETE] * 2
        assert [r.params for r in records[: len(before)]] == [r.params for r in before]
        hidden = [path for path in ledger.folder.trials.rglob(".*") if path.is_file()]
        assert hidden == []
