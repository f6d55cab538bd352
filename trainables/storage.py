"""Where a sweep's folder lies: a local or shared disk, or an object store.

Both keep the same promises: a written file is found whole or not at all, and appended lines stay
in order. An object store cannot append, so a file of lines is a folder of numbered segments there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Protocol

from pyarrow import fs

_SEGMENT = "{:08d}.jsonl"


class Storage(Protocol):
    """Files under one location; names are relative to it, with forward slashes."""

    location: str

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file atomically."""

    def append(self, name: str, line: bytes) -> None:
        """Add a line, without its line break, to a file of lines."""

    def lines(self, name: str) -> list[bytes]:
        """The lines of a file of lines; none where it does not exist. The last may be torn."""

    def children(self, name: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; none where it does not exist."""

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of the name."""

    def remove(self, name: str) -> None:
        """Delete a file or a folder with all in it, if it exists."""

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder under the name."""

    def download(self, name: str, folder: Path) -> None:
        """Copy a folder to a local one."""


def open_storage(location: str | Path) -> Storage:
    """Storage at a path or at an address such as `s3://bucket/sweeps`."""
    text = str(location)
    if "://" not in text:
        return LocalStorage(Path(text))
    filesystem, prefix = fs.FileSystem.from_uri(text)
    return ObjectStorage(text, filesystem, prefix)


class LocalStorage:
    """A folder of a local disk or of a network file system such as NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)

    def append(self, name: str, line: bytes) -> None:
        """See `Storage`. A torn line of a driver that died is closed first."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def lines(self, name: str) -> list[bytes]:
        """See `Storage`."""
        try:
            return self.read(name).splitlines()
        except FileNotFoundError:
            return []

    def children(self, name: str) -> list[str]:
        """See `Storage`."""
        try:
            return sorted(
                child.name for child in os.scandir(self.root / name) if child.name[0] != "."
            )
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return (self.root / name).exists()

    def remove(self, name: str) -> None:
        """See `Storage`."""
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def upload(self, folder: Path, name: str) -> None:
        """See `Storage`; nothing to do where the folder lies there already."""
        if folder.resolve() != (self.root / name).resolve():
            shutil.copytree(folder, self.root / name, dirs_exist_ok=True)

    def download(self, name: str, folder: Path) -> None:
        """See `Storage`."""
        shutil.copytree(self.root / name, folder, dirs_exist_ok=True)


class ObjectStorage:
    """A prefix of an object store, through a pyarrow filesystem."""

    def __init__(self, location: str, filesystem: fs.FileSystem, prefix: str) -> None:
        self.location = location
        self._filesystem = filesystem
        self._prefix = PurePosixPath(prefix)
        self._next_segment: dict[str, int] = {}

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        with self._filesystem.open_input_file(self._key(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """See `Storage`; an object appears when its upload is complete."""
        with self._filesystem.open_output_stream(self._key(name)) as stream:
            stream.write(content)

    def append(self, name: str, line: bytes) -> None:
        """See `Storage`."""
        if name not in self._next_segment:
            self._next_segment[name] = len(self.children(name))
        segment = _SEGMENT.format(self._next_segment[name])
        self.write(f"{name}/{segment}", line + b"\n")
        self._next_segment[name] += 1

    def lines(self, name: str) -> list[bytes]:
        """See `Storage`."""
        segments = self.children(name)
        return [line for s in segments for line in self.read(f"{name}/{s}").splitlines()]

    def children(self, name: str) -> list[str]:
        """See `Storage`."""
        selector = fs.FileSelector(self._key(name), allow_not_found=True)
        return sorted(info.base_name for info in self._filesystem.get_file_info(selector))

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        info = self._filesystem.get_file_info(self._key(name))
        return bool(info.type != fs.FileType.NotFound)

    def remove(self, name: str) -> None:
        """See `Storage`."""
        info = self._filesystem.get_file_info(self._key(name))
        if info.type == fs.FileType.Directory:
            self._filesystem.delete_dir(info.path)
        elif info.type == fs.FileType.File:
            self._filesystem.delete_file(info.path)

    def upload(self, folder: Path, name: str) -> None:
        """See `Storage`."""
        fs.copy_files(
            str(folder),
            self._key(name),
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self._filesystem,
        )

    def download(self, name: str, folder: Path) -> None:
        """See `Storage`."""
        folder.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            self._key(name),
            str(folder),
            source_filesystem=self._filesystem,
            destination_filesystem=fs.LocalFileSystem(),
        )

    def _key(self, name: str) -> str:
        return str(self._prefix / name)
