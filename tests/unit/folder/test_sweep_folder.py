"""Folders that no sweep may run in: a clear message, exit code 2, and nothing changed on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import measurement, record_sweep, running, sweep_record
from sweep_files import SWEEP

from trainables.errors import UserError
from trainables.records.item_records import write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import ItemScore
from tune.cli import main
from tune.config.input_files import digests
from tune.config.sweep_file import load_sweep
from tune.folder.sweep_folder import check_sweep_folder

State = dict[str, tuple[bytes | None, int]]


@pytest.fixture
def sweep(tmp_path: Path) -> Ledger:
    """A sweep of two trials, beside the file that describes it."""
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    row = {"prompt": "a", "completion": "b"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 50)
    config = load_sweep(str(tmp_path / "tiny.yaml"), [])
    trials = [running(number, train=config.train) for number in (0, 1)]
    ledger = record_sweep(tmp_path / "sweeps" / "tiny", *trials)
    ledger.write_sweep(sweep_record(config).model_copy(update={"inputs": digests(config)}))
    item = ItemScore(task="b", doc_hash="0", filter="none", score=1, answer="yes")
    write_items(ledger.folder.base_items, [item, item])
    for step in (5, 10, 15):
        ledger.append(0, measurement(step))
    return ledger


def state(folder: Path) -> State:
    """Content and time of change of a folder and everything below it."""
    return {
        str(path): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
    }


def replace(name: str, before: str, after: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after, 1))

    return edit


def make_foreign(folder: Path) -> None:
    (folder / "sweep.json").unlink()
    (folder / "notes.txt").write_text("mine")


def make_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


TRIAL = "trials/0001/trial.json"
OTHER_VERSION = "another version of forgetting-sweeps wrote it"


@pytest.mark.parametrize(
    ("edit", "facts"),
    [
        (
            replace(TRIAL, '"schema_version": 3', '"schema_version": 2'),
            (TRIAL, "must be 3, got 2", OTHER_VERSION),
        ),
        (replace(TRIAL, '"started"', '"began"'), (TRIAL, "began is no key", OTHER_VERSION)),
        (replace(TRIAL, '"RUNNING"', '"DONE"'), (TRIAL, "status must be", "restore", "delete")),
        (replace("sweep.json", '"sweep_id"', '"a'), ("sweep.json", "is not JSON", "restore")),
        (replace("base/base.json", '"skipped_samples"', ""), ("base.json", "evaluate the base")),
        (
            replace("trials/0000/metrics.jsonl", '"step":5', '"step":6'),
            ("metrics.jsonl:1: was changed", 'delete its "crc32" to accept it'),
        ),
        (make_foreign, ("holds no sweep", "sweep.json is missing", "notes.txt", "another folder")),
        (make_file, ("cannot write", "is no folder")),
    ],
)
def test_unusable_folder_is_named_with_a_remedy_and_unchanged(
    sweep: Ledger, edit: Callable[[Path], None], facts: tuple[str, ...]
) -> None:
    folder = sweep.folder.root
    assert check_sweep_folder(folder) is False
    edit(folder)
    before = state(folder.parent)
    with pytest.raises(UserError) as caught:
        check_sweep_folder(folder)
    for fact in facts:
        assert fact in str(caught.value)
    if OTHER_VERSION in facts:
        assert "delete" not in str(caught.value)
    assert state(folder.parent) == before


def test_command_refuses_a_damaged_folder_and_reports_all_damage(
    sweep: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep.folder.root
    for number in (0, 1):
        sweep.folder.trial_json(number).write_text("{")
    before = state(folder.parents[1])
    command = [str(folder.parents[1] / "tiny.yaml"), "--output-dir", str(folder.parent)]
    for arguments in (command, [*command, "--dry-run"]):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2
    assert state(folder.parents[1]) == before
