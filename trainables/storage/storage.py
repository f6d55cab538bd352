"""Where a sweep is stored: a folder, or an address in an object store."""

from __future__ import annotations

import re
from pathlib import Path

from trainables.errors import Fault, UserError
from trainables.storage.base_storage import Storage
from trainables.storage.local_storage import LocalStorage
from trainables.storage.locations import expanded

Location = str | Path
SEE_THE_STORE = "see that the store answers and may be written to; then the same command goes on"
_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")  # what pyarrow knows, by its address
_MEANT_AS_ADDRESS = re.compile(rf"[a-z0-9]+://|({'|'.join(_STORES)}):/", re.IGNORECASE)
_KEYS_OR_OPTIONS = re.compile(r"://[^/@]*:[^@]*@|[?#]")


def open_storage(location: Location) -> Storage:
    """Storage at a path or at an address such as `s3://bucket/sweeps`.

    Raises:
        UserError: the address cannot be read, or holds keys, which records and messages would show.
        OSError: nothing answers at the address.
    """
    if isinstance(location, str) and is_address(location):
        if _KEYS_OR_OPTIONS.search(location):
            rule = "the address of an object store must hold neither keys nor a ? or #"
            remedy = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL instead"
            raise UserError([Fault("", rule, remedy)])
        from trainables.storage.object_storage import ObjectStorage

        return ObjectStorage(location)
    return LocalStorage(Path(location))


def is_address(location: str) -> bool:
    """Whether the location is an object store's address rather than a path."""
    return re.match(r"[a-z0-9]+://", location) is not None


def parse_location(text: str) -> Location:
    """A location as typed; `UserError` for an address without a bucket in a known store."""
    if not _MEANT_AS_ADDRESS.match(text):
        return expanded(text)
    store, _, name = text.partition("://")
    if store not in _STORES or not name or name.startswith("/"):
        rule = f"must be a folder's path or the address of an object store, got {text}"
        remedy = "write one such as s3://bucket/sweeps, with gs:// or abfs:// for other stores"
        raise UserError([Fault("", rule, remedy)])
    return text.rstrip("/")


def parse_folder(given: Location) -> Path:
    """The folder of a sweep on this machine; `UserError` for an object store's address."""
    location = parse_location(given) if isinstance(given, str) else given
    if isinstance(location, str):
        rule = f"must be a folder, got {location}"
        raise UserError([Fault("SWEEP_DIR", rule, "copy the sweep to this machine first")])
    return location


def join(location: Location, *names: str) -> Location:
    """A location inside another."""
    return "/".join((location, *names)) if isinstance(location, str) else location.joinpath(*names)
