"""Writing that leaves all of a file or folder or nothing, and telling when a disk is full."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A file to write, which takes its name, and the place of what bore it, once it is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_whole(file: Path, text: str) -> None:
    """Write a file; under its name all of the text is found or what was there before."""
    with whole_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path, is_first: bool = True) -> Iterator[Path]:
    """A folder to fill, which takes its name, and the place of what bore it, once it is full.

    Where filling it fails nothing of it remains, and what bore the name before is untouched. Of
    several workers that fill it together the first makes and names it.
    """
    unfinished = folder.with_name(f".{folder.name}")
    if not is_first:
        yield unfinished
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


class _LossyFile(io.FileIO):
    """Drops what a full disk does not take."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not is_disk_full(error):
                raise
            return len(data)


def log_stream(file: Path | int) -> TextIO:
    """Appends text to a log at once; a full disk ends the log, not the one who writes it.

    Args:
        file: its path, or a descriptor that is open already and stays so.
    """
    raw = _LossyFile(file, "a", closefd=not isinstance(file, int))
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)  # type: ignore[arg-type]


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or an exhausted quota.

    Libraries written in Rust or C++ raise errors of their own, of which the text alone tells.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk_named_in(error: BaseException) -> str | None:
    """What `disk_full` said where the error was raised, which may have been another machine."""
    found = re.search(r"disk full: [^\n]* free of [\d.]+ [GM]iB", str(error))
    return found[0] if found else None


def disk_full(folder: Path) -> str:
    """What to say of a folder on a full disk: its name and what is free there."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return f"disk full: {folder} has {_size(usage.free)} free of {_size(usage.total)}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
