"""The one checkpoint that all workers resume from, on storage that errs or shows old states."""

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
    still_whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Choose = Callable[..., Path | None]

STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    """With checkpoints of steps 5 and 10."""
    folder = tmp_path / "attempt_1"
    for step in (5, 10):
        save_checkpoint(folder, step)
    return folder


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, without waiting."""
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


def failing(times: int) -> Callable[[Path], str]:
    """The digest of a file that cannot be read the first so many times."""
    digest, calls = checkpoint_files.digest, []

    def stale(file: Path) -> str:
        calls.append(file)
        if len(calls) <= times:
            raise STALE
        return digest(file)

    return stale


def test_a_checkpoint_that_cannot_be_read_for_a_while_is_not_damaged(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(checkpoint_files, "digest", failing(2))
    chosen = resume_point.resume_point([attempt])
    assert chosen is not None
    assert chosen.name == "step_00000010"
    assert len(pauses) == 2
    set_damaged_aside([attempt], chosen)
    assert len(checkpoints([attempt])) == 2


def test_what_cannot_be_read_at_all_is_an_error_and_no_older_checkpoint(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(checkpoint_files, "digest", failing(1000))
    with pytest.raises(OSError, match="Stale") as caught:
        resume_point.resume_point([attempt])
    assert caught.value is STALE
    assert sum(pauses) > 60


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("by_then", [5, 20, None])
def test_what_is_deleted_while_a_worker_looks_is_nobody_s_choice(
    attempt: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    by_then: int | None,
    is_read: bool,
) -> None:
    """By the attempt that wrote it: it may live on behind a cut network."""
    digest = checkpoint_files.digest

    def as_it_is_deleted(file: Path) -> str:
        monkeypatch.setattr(checkpoint_files, "digest", digest)
        found = digest(file) if is_read else "none"
        shutil.rmtree(checkpoint_dir(attempt, 10))
        if by_then != 5:
            shutil.rmtree(checkpoint_dir(attempt, 5))
        if by_then == 20:
            save_checkpoint(attempt, 20)
        return found

    monkeypatch.setattr(checkpoint_files, "digest", as_it_is_deleted)
    expected = checkpoint_dir(attempt, by_then) if by_then else None
    assert resume_point.resume_point([attempt]) == expected
    assert sum(pauses) < 10


def test_a_checkpoint_that_the_storage_does_not_read_is_not_told_as_deleted(attempt: Path) -> None:
    checkpoint = checkpoint_dir(attempt, 10)
    (checkpoint / FILES).unlink()
    (checkpoint / FILES).symlink_to(FILES)
    with (
        pytest.raises(CheckpointLost, match=r"step_00000010 cannot be read: .* symbolic links"),
        still_whole(checkpoint),
    ):
        pass


def test_missing_and_changed_files_are_damage(attempt: Path) -> None:
    older, newer = sorted((attempt / "checkpoints").iterdir())
    (newer / "training.safetensors").unlink()
    (older / "training.safetensors").write_bytes(b"other")
    assert not is_valid(newer)
    assert not is_valid(older)
    assert not is_valid(attempt / "checkpoints" / "step_00000015")
    set_damaged_aside([attempt], None)
    assert checkpoints([attempt]) == []


def test_the_newest_is_that_of_the_last_step_whichever_attempt_s(
    attempt: Path, tmp_path: Path
) -> None:
    """A later attempt comes less far if it went on from an older one."""
    later = tmp_path / "attempt_2"
    save_checkpoint(later, 7)
    assert [int(path.name[5:]) for path in checkpoints([attempt, later])] == [10, 7, 5]


@pytest.mark.parametrize("first_sees", [("5",), ("5", "10"), ()])
def test_all_workers_take_what_the_first_one_chooses(
    attempt: Path, tmp_path: Path, choose: Choose, first_sees: tuple[str, ...]
) -> None:
    elsewhere = tmp_path / "elsewhere" / "attempt_1"
    for step in first_sees:
        name = f"checkpoints/step_{int(step):08d}"
        shutil.copytree(attempt / name, elsewhere / name)
    first, second = choose(0, elsewhere), choose(1, attempt)
    assert (second and second.name) == (first and first.name)
    assert (first and first.name) == (f"step_{int(first_sees[-1]):08d}" if first_sees else None)


def test_another_attempt_s_checkpoint_of_the_same_step_is_another_one(
    attempt: Path, tmp_path: Path, choose: Choose
) -> None:
    later = tmp_path / "attempt_2"
    (save_checkpoint(later, 10) / "files.json").write_text("{}")
    choose(0, attempt)
    assert choose(1, attempt, later) == attempt / "checkpoints" / "step_00000010"


def test_a_checkpoint_without_a_list_of_its_files_is_no_worker_s_choice(
    attempt: Path, choose: Choose, pauses: list[float]
) -> None:
    (save_checkpoint(attempt, 15) / "files.json").unlink()
    chosen = choose(0, attempt)
    assert chosen == attempt / "checkpoints" / "step_00000010"
    assert choose(1, attempt) == chosen
    assert not pauses


def test_a_worker_that_sees_an_old_state_waits_for_the_new_one(
    attempt: Path, tmp_path: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(
        resume_point.time, "sleep", lambda _: shutil.copytree(attempt, elsewhere / "attempt_1")
    )
    choose(0, attempt)
    found = choose(1, elsewhere / "attempt_1")
    assert found == elsewhere / "attempt_1" / "checkpoints" / "step_00000010"


def test_a_worker_that_never_sees_it_says_so(
    attempt: Path, tmp_path: Path, choose: Choose, pauses: list[float]
) -> None:
    elsewhere = tmp_path / "elsewhere" / "attempt_1"
    save_checkpoint(elsewhere, 5)
    choose(0, attempt)
    with pytest.raises(CheckpointLost, match=r"^rank 1 does not see .* it sees step_00000005$"):
        choose(1, elsewhere)
    assert pauses
