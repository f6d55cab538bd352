"""How the command ends where there is no trial, or no store, that could save anything."""

from __future__ import annotations

import os
import pwd
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from ray.tune import TuneError
from rich.console import Console
from small_disk import fill, small_disk

from trainables.errors import Fault, UserError
from trainables.records.ledger import Ledger
from trainables.storage.disk import write_whole
from trainables.workers import ray_tasks as tasks
from tune import cli as command_line
from tune.folder.lock import SweepLock

DENIED = "When deleting: AWS Error ACCESS_DENIED during DeleteObjects operation: no"


def test_missing_home_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container that is run under any number: Ray cannot even be imported."""

    def unknown(user: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert command_line.main(["quickstart", "--dry-run"]) == command_line.BAD_INPUT
    errors = capsys.readouterr().err
    for fact in ("HOME: is not set", f"user {os.getuid()}", "export HOME=FOLDER"):
        assert fact in errors


@pytest.mark.parametrize(
    ("address", "fact"),
    [(None, "the same command starts it"), ("auto", "start the cluster again")],
)
def test_lost_head_is_named(
    address: str | None, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    console = Console()
    with console.capture() as captured:
        command_line._end_without_head(console, address)
    assert fact in captured.get()
    assert codes == [command_line.HEAD_LOST]


def as_tune_does(error: Exception) -> NoReturn:
    """What a listener raises becomes the traceback's text in an error of Tune's own."""
    try:
        raise error
    except Exception:
        raise TuneError(traceback.format_exc())  # noqa: B904


def as_it_is(error: Exception) -> NoReturn:
    raise error


@pytest.mark.parametrize("raised", [as_tune_does, as_it_is])
def test_error_of_the_store_is_one_line(
    raised: Callable[[Exception], NoReturn], bucket: str
) -> None:
    ledger = Ledger(f"{bucket}/denied")
    with (
        pytest.raises(UserError) as caught,
        SweepLock(ledger.folder.location) as lock,
        command_line._cleared_on_fault(ledger, bucket, lock, is_new=False),
    ):
        raised(OSError(DENIED))
    for fact in (f"cannot write to {bucket}/denied: {DENIED}; ", "may be written to"):
        assert fact in str(caught.value)


@pytest.mark.parametrize("is_new", [True, False])
def test_new_folder_of_a_refused_sweep_is_removed(is_new: bool, tmp_path: Path) -> None:
    output_dir = tmp_path / "sweeps"
    ledger = Ledger(output_dir / "quickstart")
    with (
        pytest.raises(UserError, match="the cluster has 0"),
        SweepLock(ledger.folder.location) as lock,
        command_line._cleared_on_fault(ledger, output_dir, lock, is_new),
    ):
        raise UserError([Fault("resources.full", "asks for 64 GPUs, the cluster has 0")])
    assert output_dir.exists() != is_new


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "check_granted_gpus", lambda: None)


@pytest.mark.usefixtures("without_ray")
def test_full_disk_in_the_base_evaluation_is_named_with_its_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (log := disk / "base.log").touch()
        fill(disk)
        fault = tasks._fault_of(lambda: write_whole(disk / "base.json", "{}"), log)
    assert f"disk full: {disk} has 0.0 MiB free of 0.1 MiB; make room" in str(fault)
