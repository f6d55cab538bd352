"""Where a sweep is stored, behind a small interface: a local or shared disk, or an object store.

Files are written whole or not at all. Names are relative, with forward slashes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from trainables.errors import Fault, UserError
from trainables.storage.disk import beside, flush, whole_file
from trainables.storage.locations import expanded

Location = str | Path
# What to do where a store fails or refuses.
SEE_THE_STORE = "see that the store answers and may be written to; then the same command goes on"
_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")  # what pyarrow knows, by its address
_MEANT_AS_ADDRESS = re.compile(rf"[a-z0-9]+://|({'|'.join(_STORES)}):/", re.IGNORECASE)
_KEYS_OR_OPTIONS = re.compile(r"://[^/@]*:[^@]*@|[?#]")


class Storage(Protocol):
    """Files under one location."""

    def exists(self, name: str) -> bool:
        """Whether a file of that name exists."""

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: it does not exist.
        """

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of many files; None for each that does not exist."""
        return [read_or_none(self, name) for name in names]

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file atomically and durably."""

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


def open_storage(location: Location) -> Storage:
    """Storage at a path or at an address such as `s3://bucket/sweeps`.

    Raises:
        UserError: the address has keys or options, which not all its readers would have and which
            records and messages would show, or a #, after which nothing is part of a name; or it
            is none that pyarrow can read, as is one in `AWS_ENDPOINT_URL`.
        OSError: nothing answers at the address.
    """
    if isinstance(location, str) and is_address(location):
        if _KEYS_OR_OPTIONS.search(location):
            rule = "the address of an object store must hold neither keys nor a ? or #"
            variables = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_ENDPOINT_URL"
            remedy = f"take them out; keys and options belong in {variables}"
            raise UserError([Fault("", rule, remedy)])
        from trainables.storage.object_storage import ObjectStorage

        return ObjectStorage(location)
    return LocalStorage(Path(location))


def is_address(location: str) -> bool:
    """Whether the location is an object store's address rather than a path."""
    return re.match(r"[a-z0-9]+://", location) is not None


def parse_location(text: str) -> Location:
    """A location as the user typed it.

    Raises:
        UserError: it looks like an address, and is none of a bucket in a store that is known.
    """
    if not _MEANT_AS_ADDRESS.match(text):
        return expanded(text)
    store, _, name = text.partition("://")
    if store not in _STORES or not name or name.startswith("/"):
        rule = f"must be a folder's path or the address of an object store, got {text}"
        remedy = "write one such as s3://bucket/sweeps, with gs:// or abfs:// for other stores"
        raise UserError([Fault("", rule, remedy)])
    return text.rstrip("/")


def parse_folder(given: Location) -> Path:
    """The folder of a sweep on this machine, as the user typed it or as a path.

    Raises:
        UserError: it is an object store's address.
    """
    location = parse_location(given) if isinstance(given, str) else given
    if isinstance(location, str):
        rule = f"must be a folder, got {location}"
        raise UserError([Fault("SWEEP_DIR", rule, "copy the sweep to this machine first")])
    return location


def read_or_none(storage: Storage, name: str) -> bytes | None:
    """The content of a file; None if it does not exist."""
    try:
        return storage.read(name)
    except FileNotFoundError:
        return None


def segments_folder(log: str) -> str:
    """Where an object store has the lines of a log."""
    return log.removesuffix(".jsonl")


def join(location: Location, *names: str) -> Location:
    """A location inside another."""
    return "/".join((location, *names)) if isinstance(location, str) else location.joinpath(*names)


class LocalStorage(Storage):
    """A folder of a local disk or of a network file system such as NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        with whole_file(self.root / name) as unfinished:
            unfinished.write_bytes(content)

    def create(self, name: str, content: bytes) -> bool:
        """See `Storage`. A hard link is atomic even on NFS and never shows half a file."""
        file = self.root / name
        with beside(file) as unfinished:
            unfinished.write_bytes(content)
            flush(unfinished)
            try:
                file.hardlink_to(unfinished)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                return _create_exclusively(file, content)
        return True

    def remove(self, name: str) -> None:
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def append(self, name: str, line: bytes) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() and (of_store := self.read_log(name)):
            self.write(name, of_store)
            self.remove(segments_folder(name))
        with file.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def read_log(self, name: str) -> bytes:
        """See `Storage`. A sweep copied out of an object store has a folder of segments."""
        content = read_or_none(self, name)
        if content is not None:
            return content
        folder = segments_folder(name)
        return b"".join(self.read(f"{folder}/{segment}") for segment in self.children(folder))

    def write_log(self, name: str, content: bytes) -> None:
        self.write(name, content)
        self.remove(segments_folder(name))

    def close_log(self, name: str) -> None:
        """See `Storage`; a file is already cheap to read."""

    def children(self, name: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / name))  # noqa: PTH208 - names alone, and fast
        except FileNotFoundError:
            return []

    def publish(self, path: Path, name: str, last: str = "") -> None:
        target = self.root / name
        if path.is_file():
            _copy(path, target)
            return
        without_last = shutil.ignore_patterns(last)
        shutil.copytree(path, target, dirs_exist_ok=True, ignore=without_last, copy_function=_copy)
        if (path / last).is_file():
            _copy(path / last, target / last)

    def fetch(self, name: str, folder: Path) -> None:
        shutil.copytree(self.root / name, folder, dirs_exist_ok=True)


def _copy(source: str | Path, target: str | Path) -> None:
    """Copy a file atomically and durably: a crash, or a full disk, leaves no part of one."""
    with whole_file(Path(target)) as unfinished:
        shutil.copy2(source, unfinished)


def _create_exclusively(file: Path, content: bytes) -> bool:
    try:
        with file.open("xb") as stream:
            stream.write(content)
    except FileExistsError:
        return False
    flush(file)
    return True
