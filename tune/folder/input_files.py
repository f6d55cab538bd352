"""Digests of the files that a sweep's numbers depend on: an edit between two starts is refused.

Also of the training data: a sweep keeps the token ids of its first start, so an edit would do
nothing, and that without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainables.errors import Fault, UserError
from trainables.files.disk import hash_file
from trainables.files.locations import PACKAGE_SCHEME, is_local
from tune.config.sweep_config import SweepConfig

_DATA = ("data.path", "data.validation_path")


def digests(config: SweepConfig) -> dict[str, str]:
    """A digest of what each field names, by field; files of installed packages are left out."""
    return {
        field: _digest(Path(name).expanduser(), is_whole=field in _DATA)
        for field, name in _named(config)
    }


def check_same_inputs(recorded: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check that no file has changed since the sweep's first start.

    Args:
        recorded: the digests then.
        now: those of this start.

    Raises:
        UserError: the base was measured, or the data were read, from other files; names them all.
    """
    remedy = "put it back, or give the sweep another name or --output-dir"
    faults = [
        Fault(field, "has changed since this sweep's first start", remedy)
        for field, digest in now.items()
        if recorded.get(field) != digest
    ]
    if faults:
        raise UserError(faults)


def _named(config: SweepConfig) -> Iterator[tuple[str, str]]:
    named = [("model.name", config.model.name), ("eval.general_text", config.eval.general_text)]
    named += zip(_DATA, (config.data.path, config.data.validation_path), strict=True)
    named += [(f"eval.task_dirs.{i}", folder) for i, folder in enumerate(config.eval.task_dirs)]
    for role, task in config.eval.tasks():
        for split, file in (task.data_files or {}).items():
            named.append((f"eval.{role}.{task.label}.data_files.{split}", file))
    for field, name in named:
        if name and not name.startswith(PACKAGE_SCHEME) and (is_local(name) or Path(name).exists()):
            yield field, name


def _digest(path: Path, is_whole: bool) -> str:
    """Of a file, or of all files in a folder but hidden ones and compiled code.

    Args:
        path: the file or folder.
        is_whole: whether all of a large file counts, as an edit of data may leave its size.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        inside = file.relative_to(path).parts
        if file.is_file() and not any(p.startswith((".", "__pycache__")) for p in inside):
            digest.update(f"{'/'.join(inside)}:{file.stat().st_size}\n".encode())
            if is_whole:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                hash_file(digest, file)
    return digest.hexdigest()
