"""An object store, such as S3 or GCS, through a pyarrow filesystem.

An object appears when its upload is complete, so every object found is whole. Objects cannot grow:
a log is a folder of numbered segments, one per line, joined into one when the log is closed.
Credentials come from the environment, such as `AWS_ACCESS_KEY_ID`, or from the machine's role.
A store that fails is asked again for some minutes; one that denies access is not.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

from pyarrow import ArrowException, NativeFile, fs

from trainables.errors import Fault, UserError, first_line
from trainables.storage.base_storage import Storage, read_or_none, segments_folder

_PARALLEL_REQUESTS = 32
_ATTEMPTS = 13  # 3.4 minutes in all, where pyarrow itself would ask for 6 seconds
_CLAIM_LASTS = timedelta(minutes=1)  # older claims are those of processes that have died
# Errors that pass, as pyarrow words them: Amazon's codes, HTTP status codes of other stores and
# of proxies, and Google's.
_OUT = re.compile(
    "AWS Error (SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|NETWORK_CONNECTION"
    r"|REQUEST_TIMEOUT|UNKNOWN \(HTTP status (408|429|50[0234]|52[0-4])\)) |Status\(UNAVAILABLE"
)
# How each store's errors begin: Amazon's and those like it, Google's, Azure's.
_OF_STORE = re.compile(r"AWS Error |google::cloud::Status\(|Azure Error: ")
# The address of S3 alone wins over that of all services.
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
T = TypeVar("T")


class ObjectStorage(Storage):
    """Objects under a prefix, such as `s3://bucket/sweeps/mine`.

    Raises:
        UserError: the address cannot be read, or that in `AWS_ENDPOINT_URL`.
    """

    def __init__(self, location: str) -> None:
        options = _endpoint() if location.startswith("s3://") else {}
        query = f"?{urlencode(options)}" if options else ""  # pyarrow takes none from a variable
        try:
            filesystem, prefix = fs.FileSystem.from_uri(location + query)
        except ValueError as error:  # before the store is asked
            what = first_line(error).replace(query, "")
            remedy = "write one such as s3://bucket/sweeps, with %20 for a space"
            raise UserError(
                [Fault("", f"{location} is no address of a store: {what}", remedy)]
            ) from error
        self._filesystem = _patient(filesystem, options)
        self._prefix = PurePosixPath(prefix)
        self._last_segment: dict[str, int] = {}

    def exists(self, name: str) -> bool:
        return bool(self._info(name).type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        with self._opened(self._key(name)) as stream:
            return bytes(stream.read())

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return _in_parallel(partial(read_or_none, self), names)

    def write(
        self, name: str, content: bytes, may_write: Callable[[], None] = lambda: None
    ) -> None:
        """See `Storage`; in a thread, as a stream that Ctrl-C interrupts uploads a part."""
        may_write()
        _in_parallel(partial(self._put, content), [name])

    def create(self, name: str, content: bytes) -> bool:
        """See `Storage`.

        pyarrow has no conditional writes, so each creator first puts a claim beside the object and
        lists all claims. Stores list an object as soon as it is written (S3 since December 2020),
        so of two creators at least one sees the other's claim, withdraws and tries again later.
        """
        claims, own = f"{name}.claims", uuid4().hex
        while not self.exists(name):
            to_remove = f"{claims}/{own}"
            self.write(to_remove, b"")
            try:
                if self._is_alone(claims, own) and not self.exists(name):
                    self.write(name, content)
                    to_remove = claims
                    return True
            finally:
                with suppress(FileNotFoundError):  # another creator has removed it
                    self.remove(to_remove)
            time.sleep(random.uniform(0.0, 0.5))  # noqa: S311 - not for cryptography
        return False

    def _is_alone(self, claims: str, own: str) -> bool:
        """Whether there is no other claim; removes those of creators that have died."""
        selector = fs.FileSelector(self._key(claims), allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        written = {info.base_name: info.mtime for info in found}  # by the store's clock
        others = written.keys() - {own}
        if own in written:  # else this process was suspended, and another removed its claim
            dead = [n for n in others if written[n] < written[own] - _CLAIM_LASTS]
            with suppress(FileNotFoundError):  # another creator has removed it
                _in_parallel(self.remove, [f"{claims}/{n}" for n in dead])
        return written.keys() == {own}

    def remove(self, name: str) -> None:
        info = self._info(name)
        if info.type == fs.FileType.Directory:
            with suppress(FileNotFoundError):  # of Google's, an object of the folder's own name
                self._filesystem.delete_dir(info.path)
        elif info.type == fs.FileType.File:
            self._filesystem.delete_file(info.path)

    def append(self, name: str, line: bytes) -> None:
        number = self._last(name) + 1
        self.write(_segment(name, number), line)
        self._last_segment[name] = number

    def read_log(self, name: str) -> bytes:
        return self.read_logs([name])[0]

    def read_logs(self, names: Sequence[str]) -> list[bytes]:
        """See `Storage`; a log that was rewritten after its listing is read again."""
        found = _in_parallel(self._parts, names)
        keys = [(i, part) for i, parts in enumerate(found) for part in parts]
        logs = [b""] * len(names)
        rewritten: set[int] = set()
        for (i, _), content in zip(keys, self.read_all([key for _, key in keys]), strict=True):
            if content is None:
                rewritten.add(i)
            else:
                logs[i] += content
        for i in rewritten:
            logs[i] = self.read_log(names[i])
        return logs

    def write_log(self, name: str, content: bytes) -> None:
        """See `Storage`; until the old segments are deleted, readers see the lines twice."""
        self._last(name)  # makes a copied file a segment
        old = self._parts(name)
        self.append(name, content)
        _in_parallel(self.remove, old)

    def close_log(self, name: str) -> None:
        if len(self.children(segments_folder(name))) > 1:
            self.write_log(name, self.read_log(name))

    def children(self, name: str) -> list[str]:
        key = self._key(name)
        # Google lists no folders that are but parts of names; what is in them it lists.
        selector = fs.FileSelector(key, allow_not_found=True, recursive=self._is_google)
        inside = self._filesystem.get_file_info(selector)
        return sorted({PurePosixPath(info.path).relative_to(key).parts[0] for info in inside})

    def publish(self, path: Path, name: str, last: str = "") -> None:
        if path.is_file():
            self._upload(path, name)
            return
        inside = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        _in_parallel(
            lambda file: self._upload(path / file, str(PurePosixPath(name, file))),
            [file for file in inside if file != last],
        )
        if last in inside:
            self._upload(path / last, str(PurePosixPath(name, last)))

    def fetch(self, name: str, folder: Path) -> None:
        prefix = self._key(name)
        # Not by pyarrow's own copy of folders: Google lists none that are but parts of names.
        found = self._filesystem.get_file_info(fs.FileSelector(prefix, recursive=True))

        def download(key: str) -> None:
            file = folder / PurePosixPath(key).relative_to(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(key, str(file), self._filesystem, fs.LocalFileSystem())

        _in_parallel(download, [info.path for info in found if info.is_file])

    @property
    def _is_google(self) -> bool:
        return bool(self._filesystem.type_name == "gcs")

    def _opened(self, key: str) -> NativeFile:
        if self._is_google:  # whose files wait for the network with Python's lock held
            return self._filesystem.open_input_stream(key, compression=None)
        return self._filesystem.open_input_file(key)  # a stream would take a request for each part

    def _put(self, content: bytes, name: str) -> None:
        with self._filesystem.open_output_stream(self._key(name), compression=None) as stream:
            stream.write(content)

    def _upload(self, file: Path, name: str) -> None:
        fs.copy_files(str(file), self._key(name), fs.LocalFileSystem(), self._filesystem)

    def _last(self, log: str) -> int:
        if log not in self._last_segment:
            parts = self._parts(log)
            if parts == [log]:
                parts = [_segment(log, 1)]
                self.write(parts[0], self.read(log))
                self.remove(log)  # a copy on a disk would take it for all
            self._last_segment[log] = int(PurePosixPath(parts[-1]).stem) if parts else 0
        return self._last_segment[log]

    def _parts(self, log: str) -> list[str]:
        """The objects that hold a log's lines, in order."""
        folder = segments_folder(log)
        segments = [f"{folder}/{segment}" for segment in self.children(folder)]
        return segments or [log] * self.exists(log)

    def _info(self, name: str) -> fs.FileInfo:
        try:
            return self._filesystem.get_file_info(self._key(name))
        except ArrowException as error:  # as of Google's credentials that are not there
            raise OSError(str(error)) from error

    def _key(self, name: str) -> str:
        return str(self._prefix / name)


def is_store_out(error: BaseException) -> bool:
    """Whether an error is a store that failed or did not answer for minutes."""
    return isinstance(error, OSError) and _OUT.search(str(error)) is not None


def is_store_error(error: BaseException) -> bool:
    """Whether an error is a store that failed or refused a request."""
    return isinstance(error, OSError) and _OF_STORE.search(str(error)) is not None


def _segment(log: str, number: int) -> str:
    return f"{segments_folder(log)}/{number:08d}.jsonl"


def _patient(filesystem: fs.FileSystem, options: dict[str, str]) -> fs.FileSystem:
    """The filesystem, asking S3 for longer; Google's client asks for a quarter of an hour."""
    if not isinstance(filesystem, fs.S3FileSystem):
        return filesystem
    retries = fs.AwsDefaultS3RetryStrategy(_ATTEMPTS)
    return fs.S3FileSystem(region=filesystem.region, retry_strategy=retries, **options)


def _endpoint() -> dict[str, str]:
    """Where an S3 that is not Amazon's answers; `UserError` if the variable holds no address."""
    variable = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if variable is None:
        return {}
    parts = urlsplit(os.environ[variable])
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        rule = "must be the address of a store, with http:// or https:// and without a path"
        raise UserError([Fault(variable, rule, "write one such as http://host:9000")])
    return {"endpoint_override": parts.netloc, "scheme": parts.scheme}


def _in_parallel(call: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """Results of the call for each name, in order; threads, as requests wait for the network."""
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        return list(pool.map(call, names))
