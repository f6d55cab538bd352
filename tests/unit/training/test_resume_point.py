"""The one checkpoint that all workers resume from, on storage that fails or shows old states."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from builders import save_checkpoint

from trainables.training import checkpoint_files, resume_point
from trainables.training.checkpoint_files import (
    FILES,
    CheckpointLost,
    checkpoint_dir,
    checkpoints,
    is_valid,
    set_damaged_aside,
    unchanged,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Choose = Callable[..., Path | None]


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    """With checkpoints of steps 5 and 10."""
    folder = tmp_path / "attempt_1"
    for step in (5, 10):
        save_checkpoint(folder, step)
    return folder


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it waited, without waiting."""
    pauses: list[float] = []
    monkeypatch.setattr(resume_point.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """One worker's choice; the first worker's goes to those that follow."""
    sent: list[Any] = []

    def broadcast(values: list[Any]) -> None:
        sent.extend(values)
        values[:] = sent[: len(values)]

    def choose(rank: int, *attempts: Path) -> Path | None:
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        return resume_point.resume_point(attempts)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    return choose


def test_a_checkpoint_deleted_while_it_is_read_is_lost(attempt: Path) -> None:
    """By an attempt that lives on, or by the disk budget."""
    checkpoint = checkpoint_dir(attempt, 10)
    with pytest.raises(CheckpointLost, match="step_00000010 was deleted"), unchanged(checkpoint):
        (checkpoint / "training.safetensors").unlink()


def test_a_storage_that_fails_is_an_error_and_no_older_checkpoint_is_chosen(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def stale(file: Path) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(checkpoint_files, "digest", stale)
    with pytest.raises(OSError, match="Stale"):
        resume_point.resume_point([attempt])
    assert sum(pauses) > 60


def test_missing_and_changed_files_are_damage(attempt: Path) -> None:
    older, newer = checkpoint_dir(attempt, 5), checkpoint_dir(attempt, 10)
    (newer / "training.safetensors").unlink()
    (older / "training.safetensors").write_bytes(b"other")
    assert not is_valid(newer)
    assert not is_valid(older)
    assert not is_valid(checkpoint_dir(attempt, 15))
    set_damaged_aside([attempt], None)
    assert checkpoints([attempt]) == []


def test_the_newest_checkpoint_is_that_of_the_last_step_of_any_attempt(
    attempt: Path, tmp_path: Path
) -> None:
    """A later attempt gets less far if it resumed from an older one."""
    later = tmp_path / "attempt_2"
    save_checkpoint(later, 7)
    assert [int(path.name[5:]) for path in checkpoints([attempt, later])] == [10, 7, 5]


@pytest.mark.parametrize("first_sees", [(5,), (5, 10), ()])
def test_all_workers_take_what_the_first_one_chooses(
    attempt: Path, tmp_path: Path, choose: Choose, first_sees: tuple[int, ...]
) -> None:
    elsewhere, later = tmp_path / "elsewhere" / "attempt_1", tmp_path / "attempt_2"
    for step in first_sees:
        shutil.copytree(checkpoint_dir(attempt, step), checkpoint_dir(elsewhere, step))
    (save_checkpoint(later, 10) / FILES).write_text("{}")  # another one of the same step
    (save_checkpoint(attempt, 15) / FILES).unlink()  # half-written
    first, second = choose(0, elsewhere), choose(1, attempt, later)
    assert first == (checkpoint_dir(elsewhere, first_sees[-1]) if first_sees else None)
    assert second == (checkpoint_dir(attempt, first_sees[-1]) if first_sees else None)


def test_a_worker_that_never_sees_it_says_so(
    attempt: Path,
    tmp_path: Path,
    choose: Choose,
    pauses: list[float],
) -> None:
    elsewhere = tmp_path / "elsewhere" / "attempt_1"
    save_checkpoint(elsewhere, 5)
    choose(0, attempt)
    with pytest.raises(CheckpointLost, match=r"rank 1 .*step_00000005"):
        choose(1, elsewhere)
    assert sum(pauses) > 60
