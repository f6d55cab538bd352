"""Storage on a local disk, or on a network file system such as NFS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trainables.storage.base_storage import Storage, read_or_none, segments_folder
from trainables.storage.disk import beside, flush, whole_file


class LocalStorage(Storage):
    """Files in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(
        self, name: str, content: bytes, may_write: Callable[[], None] = lambda: None
    ) -> None:
        """See `Storage`."""
        with whole_file(self.root / name, may_write) as unfinished:
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
