"""Files and folders that are written whole or not at all, also on a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_disk import small_disk

from trainables.storage.disk import (
    content_digest,
    disk_full,
    find_full_disk_message,
    is_disk_full,
    log_stream,
    whole_folder,
    write_whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


def test_file_that_does_not_fit_leaves_the_old_one(disk: Path) -> None:
    file = disk / "a.json"
    write_whole(file, "before")
    with pytest.raises(OSError) as caught:
        write_whole(file, "x" * (100 << 10))
    assert is_disk_full(caught.value)
    assert [path.name for path in disk.iterdir()] == ["a.json"]
    assert file.read_text() == "before"


def test_folder_that_does_not_fit_leaves_the_old_one(disk: Path) -> None:
    folder = disk / "weights"
    with whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("before")
        assert not folder.exists()

    def fill() -> None:
        with whole_folder(folder) as unfinished:
            (unfinished / "a").write_text("after")
            (unfinished / "b").write_text("x" * (100 << 10))

    with pytest.raises(OSError) as caught:
        fill()
    assert is_disk_full(caught.value)
    assert [path.name for path in disk.iterdir()] == ["weights"]
    assert (folder / "a").read_text() == "before"


def test_full_disk_ends_a_log_and_not_its_writer(disk: Path) -> None:
    with log_stream(disk / "log") as stream:
        for _ in range(100):
            print("x" * 999, file=stream)
    assert (disk / "log").stat().st_size == 64 << 10


@pytest.fixture
def flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was flushed, and whether `weights` was there by then."""
    flushed = []

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append((path.relative_to(tmp_path).as_posix(), (tmp_path / "weights").exists()))

    monkeypatch.setattr(os, "fsync", note)
    return flushed


def test_file_is_flushed_before_it_has_its_name(
    tmp_path: Path, flushed: list[tuple[str, bool]]
) -> None:
    write_whole(tmp_path / "weights", "w")
    ((place, was_there),) = flushed
    assert place.startswith(f".weights.{os.getpid()}-")
    assert not was_there
    assert (tmp_path / "weights").read_text() == "w"


@pytest.mark.parametrize("is_scratch", [False, True])
def test_folder_is_flushed_before_it_has_its_name(
    is_scratch: bool, tmp_path: Path, flushed: list[tuple[str, bool]]
) -> None:
    folder = tmp_path / "weights"
    with whole_folder(folder, is_scratch=is_scratch) as unfinished:
        (unfinished / "a").write_text("a")
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "b").write_text("b")
    assert folder.exists()
    inside = ["", "/a", "/inner", "/inner/b"]
    before = [(f".weights.unfinished{path}", False) for path in inside]
    assert sorted(flushed) == ([] if is_scratch else [(".", True), *before])


MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "place"),
    [(3 * MIB, MIB + 9), (9 * MIB, 0), (9 * MIB, 4.5 * MIB), (9 * MIB, 9 * MIB - 1)],
)
def test_hash_covers_beginning_middle_and_end(size: int, place: float, tmp_path: Path) -> None:
    found = set()
    for byte in (b"a", b"b"):
        with (tmp_path / "weights").open("wb") as file:
            file.truncate(size)
            file.seek(int(place))
            file.write(byte)
        found.add(content_digest(tmp_path / "weights"))
    assert len(found) == 2


SEGMENT = "/dev/shm/nccl-1"  # noqa: S108 - NCCL's
NO_SEGMENT = f"creating shared memory segment {SEGMENT} (size 9): No space left on device (28)"


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/triton/x"), "/a/triton/x"),
        (RuntimeError(f"File /usr/lib/some.py\n  Error while {NO_SEGMENT}"), SEGMENT),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/from", None, "/b/to"), "/b/to"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"), None),
    ],
)
def test_message_names_the_place_that_the_error_names(
    error: Exception, place: str | None, tmp_path: Path
) -> None:
    wrapped = ValueError("outer")
    wrapped.__cause__ = error
    assert disk_full(wrapped, tmp_path).startswith(f"disk full: {place or tmp_path} has ")


def chained(cause: BaseException) -> BaseException:
    error = ValueError("outer")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NO_SPACE, True),
        (OSError(errno.EDQUOT, "over"), True),
        (chained(NO_SPACE), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os 28)"), True),
        (OSError(errno.EACCES, "no"), False),
        (chained(KeyError("x")), False),
        (None, False),
    ],
)
def test_full_disks_are_recognised(error: BaseException | None, expected: bool) -> None:
    assert is_disk_full(error) is expected


def test_message_names_folder_and_free_space(tmp_path: Path) -> None:
    message = disk_full(NO_SPACE, tmp_path / "not" / "yet")
    assert message.startswith(f"disk full: {tmp_path}/not/yet has ")
    assert "B free of " in message
    assert find_full_disk_message(OSError(errno.ENOSPC, "No space left", message)) == message
    assert find_full_disk_message(NO_SPACE) is None
