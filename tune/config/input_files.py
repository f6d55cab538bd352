"""Digests of the files that a sweep's numbers depend on, by which an edit between starts is seen.

The training data count, too: a sweep keeps the token ids of its first start, so an edit would
silently do nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from trainables.errors import Fault, UserError
from trainables.files.disk import hash_file
from trainables.files.locations import PACKAGE_SCHEME, expanded, is_local
from tune.config.preflight import DATA_FIELDS, named_files, named_on_hub_or_disk
from tune.config.sweep_config import SweepConfig
from tune.config.task_files import task_files

_TASK_DIRS = "eval.task_dirs"


def digests(config: SweepConfig) -> dict[str, str]:
    """A digest of what each field names, by field; files of installed packages are left out.

    Raises:
        UserError: files that this user may not read; names all of their fields.
    """
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for field, name in _named(config):
        try:
            found[field] = _digest(field, expanded(name))
        except OSError as error:
            faults.append(Fault(field, f"cannot be read: {error}"))
    if faults:
        raise UserError(faults)
    return found


def _named(config: SweepConfig) -> Iterator[tuple[str, str]]:
    for field, name in [*named_on_hub_or_disk(config), *named_files(config)]:
        if not name.startswith(PACKAGE_SCHEME) and (is_local(name) or Path(name).exists()):
            yield field, name


def _digest(field: str, path: Path) -> str:
    """Of a file, or of the files of a folder that count; those that are no data are sampled."""
    digest = hashlib.sha256()
    for file in _files(field, path):
        inside = file.relative_to(path).as_posix()
        digest.update(f"{inside}:{file.stat().st_size}\n".encode())
        if field in DATA_FIELDS:  # an edit may leave the size of a large file
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            hash_file(digest, file)
    return digest.hexdigest()


def _files(field: str, path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if field.startswith(_TASK_DIRS):
        return task_files(path)
    visible = (
        file
        for file in path.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    return sorted(file for file in visible if file.is_file())
