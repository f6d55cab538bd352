"""How the command ends where there is no trial, or no store, that could save anything."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from ray.tune import TuneError
from rich.console import Console

from trainables.errors import Fault, UserError
from trainables.records.ledger import Ledger
from tune import cli as command_line
from tune.folder.lock import SweepLock

DENIED = "When deleting: AWS Error ACCESS_DENIED during DeleteObjects operation: no"


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
