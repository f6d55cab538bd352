"""Where a sweep's records lie, behind one small door: a local or shared disk, or an object store.

What is written is found whole or not at all. Names are relative, with forward slashes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol
from uuid import uuid4


class Storage(Protocol):
    """Files under one location."""

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file atomically and durably."""

    def create(self, name: str, content: bytes) -> bool:
        """Create a file whole; False, and nothing changed, where there is one already."""

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all in it, if it exists."""

    def append(self, name: str, line: bytes) -> None:
        """Add a line, its end included, to a log. A crash may leave a part of it."""

    def read_log(self, name: str) -> bytes:
        """The lines of a log; none where there is no log."""

    def write_log(self, name: str, content: bytes) -> None:
        """Replace all lines of a log."""

    def children(self, name: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; none where there is no folder."""


def open_storage(location: str | Path) -> Storage:
    """Storage at a path."""
    return LocalStorage(Path(location))


class LocalStorage:
    """A folder of a local disk or of a network file system such as NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        _write_aside(self.root / name, content).replace(self.root / name)

    def create(self, name: str, content: bytes) -> bool:
        """See `Storage`. A hard link is atomic on NFS, too, and never shows half a file."""
        file = self.root / name
        unfinished = _write_aside(file, content)
        try:
            file.hardlink_to(unfinished)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _create_exclusively(file, content)
        finally:
            unfinished.unlink()
        return True

    def remove(self, name: str) -> None:
        """See `Storage`."""
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def append(self, name: str, line: bytes) -> None:
        """See `Storage`."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def read_log(self, name: str) -> bytes:
        """See `Storage`."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def write_log(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        self.write(name, content)

    def children(self, name: str) -> list[str]:
        """See `Storage`."""
        try:
            return sorted(os.listdir(self.root / name))  # noqa: PTH208 - names alone, and fast
        except FileNotFoundError:
            return []


def _write_aside(file: Path, content: bytes) -> Path:
    """The content on disk for good, under a hidden name beside the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}-{uuid4().hex[:8]}")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return unfinished


def _create_exclusively(file: Path, content: bytes) -> bool:
    try:
        stream = file.open("xb")
    except FileExistsError:
        return False
    with stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return True
