"""Folders that no sweep may run in: one clear message, exit 2, and nothing changed on disk."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import SWEEP_ID, measurement, record_sweep, running, sweep_record
from sweep_files import SWEEP

from trainables.errors import UserError
from trainables.records.item_records import write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import ItemScore
from trainables.storage.local_storage import LocalStorage
from tune.cli import main
from tune.config.input_files import digests
from tune.config.sweep_file import load_sweep
from tune.folder.sweep_folder import check_sweep_folder

NEWER = "a newer version may have written it: update forgetting-sweeps"
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
    for number in (0, 1):
        for step in (5, 10, 15):
            ledger.append(number, measurement(step))
    return ledger


def state(folder: Path) -> State:
    """Content and time of change of everything below a folder, and of the folder."""
    paths = [folder, *folder.rglob("*")]
    return {
        str(path): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in paths
    }


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command line says, dry or not, having changed nothing."""
    project = folder.parents[1]
    before = state(project)
    command = [str(project / "tiny.yaml"), "--output-dir", str(folder.parent)]
    assert main([*command, "--dry-run"]) == 2
    told = only_line(capsys)
    assert main(command) == 2
    assert state(project) == before
    assert only_line(capsys) == told
    return told


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    errors = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", errors), errors
    return errors


def change(file: Path, **fields: Any) -> None:
    """Change a record as someone with an editor would."""
    record = json.loads(file.read_text())
    for key, value in fields.items():
        if value is ...:
            del record[key]
        else:
            record[key] = value
    file.write_text(json.dumps(record, indent=2))


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ("micro_batch_size: 4", "epochs: 9", "train: the sweep in "),
        (
            "rank: [4, 8]",
            "rank: [4, 16]",
            "search.lora.rank: excludes trials 0, 1: trial 0 of this sweep has rank 8, ",
        ),
    ],
)
def test_an_edit_that_makes_another_sweep_is_refused_before_ray_starts(
    sweep: Ledger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    now: str,
    told: str,
) -> None:
    file = sweep.folder.root.parents[1] / "tiny.yaml"
    file.write_text(SWEEP.replace(before, now))
    monkeypatch.setattr("tune.cluster.ray_cluster.ray_cluster", lambda *_: pytest.fail("Ray"))
    assert told in refused(sweep.folder.root, capsys)


def test_a_folder_that_is_not_there_is_new(tmp_path: Path) -> None:
    assert check_sweep_folder(tmp_path / "a" / "b") is True
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["sweep.log", "base", "lock.json", ".lock.json.12-ab"],
        ["lock.12ab.json", "lock.12ab.heartbeat.json", ".lock.12ab.heartbeat.json.12-ab"],
        [".seen_by_nodes.12ab.cd", "warm_start.jsonl"],
        [".warm_start.jsonl.12-ab"],
        ["warm_start"],  # as an object store has its lines
    ],
)
def test_what_a_driver_leaves_that_was_killed_at_once_is_accepted(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert check_sweep_folder(tmp_path) is False


@pytest.mark.parametrize("kind", ["sweep_json", "trial_json", "base_json"])
def test_a_record_of_a_newer_schema(
    sweep: Ledger, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = getattr(sweep.folder, kind)
    file = file(1) if callable(file) else file
    change(file, schema_version=2)
    message = refused(sweep.folder.root, capsys)
    assert f"{file}: schema_version must be 1, got 2; {NEWER}" in message


def test_a_foreign_folder(sweep: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep.folder.root
    shutil.rmtree(folder)
    (folder / "photos").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    message = refused(folder, capsys)
    assert f"{folder} holds no sweep (sweep.json is missing) but notes.txt, photos" in message
    assert "another folder" in message


@pytest.fixture
def read_only(sweep: Ledger) -> Iterator[Path]:
    """A folder that not even root can write to."""
    folder = sweep.folder.root
    mount = ["mount", "--bind", str(folder), str(folder)]
    remount = ["mount", "-o", "remount,bind,ro", str(folder)]
    immutable = ["chattr", "+i", str(folder)]
    for undo, *commands in ((["umount", str(folder)], mount, remount),
                            (["chattr", "-i", str(folder)], immutable)):  # fmt: skip
        if all(subprocess.run(c, capture_output=True, check=False).returncode == 0
               for c in commands):  # fmt: skip
            yield folder
            subprocess.run(undo, check=False)
            return
        subprocess.run(undo, capture_output=True, check=False)
    folder.chmod(0o555)
    try:
        (folder / "probe").touch()
    except OSError:
        yield folder
        folder.chmod(0o755)
        return
    (folder / "probe").unlink()
    pytest.skip("this user can make no folder that it cannot write to")


def test_a_read_only_folder(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(read_only, capsys)
    assert f"cannot write to {read_only}: {read_only} is read-only" in message
    assert "make it writable" in message


def test_a_folder_that_only_says_so_when_it_is_written_to(
    sweep: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network file system may allow by its mode bits what its server refuses."""

    def refuse(*_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(LocalStorage, "create", refuse)
    folder = sweep.folder.root
    before = state(folder.parents[1])
    assert main([str(folder.parents[1] / "tiny.yaml"), "--output-dir", str(folder.parent)]) == 2
    assert state(folder.parents[1]) == before
    assert f"cannot write to {folder}: Permission denied" in only_line(capsys)


EDITS = {
    "no JSON": (
        "trial_json",
        '"status": "RUNNING"',
        '"status" "RUNNING"',
        "is not JSON: expected `:` at line",
    ),
    "a wrong value": ("trial_json", '"RUNNING"', '"DONE"', "status must be RUNNING, COMPLETE"),
    "a wrong number": ("trial_json", '"number": 1', '"number": -1', "config.number must be great"),
    "no sweep id": ("sweep_json", f'"sweep_id": "{SWEEP_ID}",', "", "sweep_id is missing"),
    "cut off": ("base_json", '"skipped_samples"', "", "is not JSON"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_record_edited_by_hand(
    sweep: Ledger, edit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, before, after, rule = EDITS[edit]
    file = getattr(sweep.folder, kind)
    file = file(1) if callable(file) else file
    text = file.read_text()
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError) as caught:
        check_sweep_folder(sweep.folder.root)
    message = str(caught.value.faults[0])
    assert rule in message
    assert f"{file}: " in message
    assert "restore it from a copy" in message or "to evaluate the base anew" in message
    before_running = state(sweep.folder.root)
    project = sweep.folder.root.parents[1]
    assert main([str(project / "tiny.yaml"), "--output-dir", str(sweep.folder.root.parent)]) == 2
    assert message in capsys.readouterr().err
    assert state(sweep.folder.root) == before_running


def test_items_of_the_base_that_are_cut_off(
    sweep: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each trial would end as failed, by an error that names neither file nor remedy."""
    item = ItemScore(task="b", doc_hash="0", filter="none", score=1, answer="yes")
    write_items(sweep.folder.base_items, [item, item])
    check_sweep_folder(sweep.folder.root)
    content = sweep.folder.base_items.read_bytes()
    sweep.folder.base_items.write_bytes(content[:-20])
    message = refused(sweep.folder.root, capsys)
    assert f"{sweep.folder.base_items}:2: is not JSON" in message
    assert f"delete {sweep.folder.base} to evaluate the base anew" in message
    sweep.folder.base_items.unlink()
    assert f"No such file or directory: '{sweep.folder.base_items}'" in refused(
        sweep.folder.root, capsys
    )


def test_a_measurement_edited_by_hand(sweep: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep.folder.metrics(1)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1].replace('"step":10', '"step":11') + lines[2])
    message = refused(sweep.folder.root, capsys)
    assert f"{file}:2: was changed since it was written" in message
    assert 'delete its "crc32" to accept it' in message
