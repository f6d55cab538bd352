"""Writes files and folders atomically, hashes them, and recognises full disks."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from trainables.errors import causes
from trainables.redaction import redacted

MAKE_ROOM = "make room and run the same command again: it goes on where it stopped"
# A sweep's folder has one of the first two from its first moment on.
_HELD_BY_OTHERS = ("lock.json", "sweep.json", "config.json", "adapter_config.json")
# Sweep files, logs, data, tables, reports and figures, which Transformers never reads.
_NOT_READ = re.compile(r"\.(ya?ml|log|out|jsonl|csv|tsv|parquet|html|pdf|png|svg)$").search
_SAMPLED_BYTES = 1 << 20
_BLOCKS, _BLOCK_BYTES = 4096, 1 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ABSOLUTE_PATH = re.compile(r"(?<![\w/])/[^\s'\":,]+")


@contextmanager
def whole_file(file: Path, may_replace: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yields a temporary file that replaces `file` on success; on failure it is removed.

    It is on the disk before it has its name, so that no crash of the machine leaves it empty.
    `may_replace` is called just before, and raises if the file must stay.
    """
    with beside(file) as unfinished:
        yield unfinished
        flush(unfinished)
        may_replace()
        unfinished.replace(file)


@contextmanager
def beside(file: Path) -> Iterator[Path]:
    """Yields a path of a hidden temporary file beside a file, unique across machines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    place = file.with_name(f".{file.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        yield place
    finally:
        place.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Create or replace a text file atomically."""
    with whole_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path, is_first: bool = True, is_scratch: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that replaces `folder` on success; on failure it is removed.

    Of several workers that fill it, the first renames it. Only scratch is not flushed to the disk.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if not is_first:
        yield unfinished
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        give_usual_modes(unfinished)
        if not is_scratch:
            for path in (*unfinished.rglob("*"), unfinished):
                flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        if not is_scratch:
            flush(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def give_usual_modes(folder: Path) -> None:
    """Give the files in a new folder the folder's modes; safetensors ignores the user's umask."""
    mode = folder.stat().st_mode & 0o666
    for file in filter(Path.is_file, folder.rglob("*")):
        file.chmod(mode)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems do so only for files
            raise
    finally:
        os.close(descriptor)


class LossyFile(io.FileIO):
    """Drops text that cannot be written because of one of these error numbers."""

    def __init__(
        self, file: Path | int, mode: str, dropped_at: tuple[int, ...], closefd: bool = True
    ) -> None:
        super().__init__(file, mode, closefd)
        self._dropped_at = dropped_at

    def write(self, data: Any) -> int:
        """Write as much as there is room for."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._dropped_at:
                raise
            return len(data)


class _Redacted(io.TextIOWrapper):
    def write(self, text: str) -> int:
        """Write the text without secrets."""
        super().write(redacted(text))
        return len(text)


def log_stream(file: Path | int) -> TextIO:
    """Appends text without secrets to a file or descriptor; a full disk ends only the log."""
    raw = LossyFile(file, "a", _FULL, closefd=not isinstance(file, int))
    return _Redacted(raw, "utf-8", "backslashreplace", write_through=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error or its cause, of any library, is a full disk or an exhausted quota."""
    return any(_says_full(each) for each in causes(error))


def _full_place(error: BaseException) -> Path | None:
    for each in filter(_says_full, causes(error)):
        if isinstance(each, OSError) and each.filename is not None:
            return Path(os.fsdecode(each.filename2 or each.filename))  # of a copy, its target
        for line in str(each).splitlines():
            if _names_full(line) and (found := _ABSOLUTE_PATH.search(line)):
                return Path(found[0])
    return None


def _says_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _FULL or _names_full(str(error))


def _names_full(text: str) -> bool:
    return any(os.strerror(number) in text for number in _FULL)


def find_full_disk_message(error: BaseException) -> str | None:
    """The text of `disk_full` in an error's message, as from another machine."""
    found = re.search(r"disk full: [^\n]* free of [\d.]+ [GM]iB", str(error))
    return found[0] if found else None


def disk_full(error: BaseException, folder: Path) -> str:
    """Message about a full disk: the path that the error names, else the folder, and its space."""
    place = _full_place(error) or folder
    existing = next(path for path in (place, *place.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return f"disk full: {place} has {_size(usage.free)} free of {_size(usage.total)}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def content_digest(path: Path) -> str:
    """Digest of the names, sizes and contents of a model's files, or of one file."""
    digest = hashlib.sha256()
    for file in _model_files(path):
        inside = file.relative_to(path).as_posix()
        digest.update(f"{inside}:{file.stat().st_size}\n".encode())
        _hash_file(digest, file)
    return digest.hexdigest()


def visible_files(path: Path) -> list[Path]:
    """The files below a folder that are not hidden, without `__pycache__`, or the one file."""
    if not path.is_dir():
        return [path]
    visible = (
        file
        for file in path.rglob("*")
        if not any(part.startswith((".", "__pycache__")) for part in file.relative_to(path).parts)
    )
    return sorted(file for file in visible if file.is_file())


def _model_files(path: Path) -> list[Path]:
    """A model's visible files, without sweep files and logs, and other models and sweeps in it."""
    visible = visible_files(path)
    others = {file.parent for file in visible if file.name in _HELD_BY_OTHERS} - {path}
    return [
        file for file in visible if not _NOT_READ(file.name) and others.isdisjoint(file.parents)
    ]


def _hash_file(digest: Any, file: Path) -> None:
    """Add a file to a hashlib digest.

    For more than 3 MiB: the first, middle and last MiB and 4096 blocks of 1 KiB between them, which
    tells merged or further trained weights from their base's in seconds.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= 3 * _SAMPLED_BYTES:
            digest.update(stream.read())
            return
        for offset in (0, size // 2, size - _SAMPLED_BYTES):
            stream.seek(offset)
            digest.update(stream.read(_SAMPLED_BYTES))
        for block in range(_BLOCKS):  # without a buffer, which may be of MiB
            digest.update(os.pread(stream.fileno(), _BLOCK_BYTES, size * block // _BLOCKS))
