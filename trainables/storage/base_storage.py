"""The interface to a sweep's files, on a disk or in an object store.

Files are written whole or not at all. Names are relative, with forward slashes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """Files under one location."""

    def exists(self, name: str) -> bool:
        """Whether a file of that name exists."""

    def read(self, name: str) -> bytes:
        """The content of a file; `FileNotFoundError` if it does not exist."""

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of many files; None for each that does not exist."""
        return [read_or_none(self, name) for name in names]

    def write(
        self, name: str, content: bytes, may_write: Callable[[], None] = lambda: None
    ) -> None:
        """Create or replace a file atomically and durably.

        `may_write`: called as late as possible before the file changes; raises if it must not.
        """

    def create(self, name: str, content: bytes) -> bool:
        """Create a file atomically; returns False and changes nothing if it exists."""

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all its contents, if it exists."""

    def append(self, name: str, line: bytes) -> None:
        """Append a line, including its line end, to a log. A crash may leave part of it."""

    def read_log(self, name: str) -> bytes:
        """The lines of a log; empty if it does not exist."""

    def read_logs(self, names: Sequence[str]) -> list[bytes]:
        """The lines of many logs."""
        return [self.read_log(name) for name in names]

    def write_log(self, name: str, content: bytes) -> None:
        """Replace all lines of a log."""

    def close_log(self, name: str) -> None:
        """Declare that nothing will be appended for long; makes the log cheap to read."""

    def children(self, name: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; empty if it does not exist."""

    def publish(self, path: Path, name: str, last: str = "") -> None:
        """Copy a local file or folder to the name; the file `last` is copied last."""

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a folder to a local one."""


def read_or_none(storage: Storage, name: str) -> bytes | None:
    """The content of a file; None if it does not exist."""
    try:
        return storage.read(name)
    except FileNotFoundError:
        return None


def segments_folder(log: str) -> str:
    """Where an object store has the lines of a log."""
    return log.removesuffix(".jsonl")
