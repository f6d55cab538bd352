"""The files that a sweep file names, and their digests, which reveal an edit between two starts.

The training data count too: a sweep keeps the token ids of its first start, so an edit would
silently do nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainables.errors import Fault, UserError
from trainables.storage.disk import content_digest, visible_files
from trainables.storage.locations import PACKAGE_SCHEME, expanded, is_local, resolve
from tune.config.sweep_config import SweepConfig
from tune.config.task_files import task_files

_DATA_FIELDS = ("data.path", "data.validation_path", "data.replay.path")
_TASK_DIRS = "eval.task_dirs"


def named_inputs(config: SweepConfig) -> list[tuple[str, str]]:
    """Model, data and files that a sweep file names, on a hub or a disk, as (field, name)."""
    data = config.data
    paths = (data.path, data.validation_path, data.replay.path if data.replay else None)
    named = [(field, path) for field, path in zip(_DATA_FIELDS, paths, strict=True) if path]
    return [("model.name", config.model.name), *named, *_named_files(config)]


def named_paths(config: SweepConfig) -> list[tuple[str, str]]:
    """Files and folders that a sweep file names, except the data, as (field, name)."""
    model = [("model.name", config.model.name)] if is_local(config.model.name) else []
    return [*_named_files(config), *model]


def paths_of_trials(config: SweepConfig) -> list[str]:
    """Files and folders that a trial reads, except those of packages."""
    named = [location for _, location in named_paths(config) if "://" not in location]
    return [str(expanded(location)) for location in named]


def _named_files(config: SweepConfig) -> list[tuple[str, str]]:
    """Files except data and model, as (field, name)."""
    named = [(f"{_TASK_DIRS}.{i}", folder) for i, folder in enumerate(config.eval.task_dirs)]
    if config.eval.general_text:
        named.append(("eval.general_text", config.eval.general_text))
    if config.model.chat_template:
        named.append(("model.chat_template", config.model.chat_template))
    for role, task in config.eval.tasks():
        for split, file in (task.data_files or {}).items():
            named.append((f"eval.{role}.{task.label}.data_files.{split}", file))
    return named


def digests(config: SweepConfig) -> dict[str, str]:
    """A digest of the files that each field names, by field; in packages, only of the model.

    Raises:
        UserError: files cannot be read; names all of their fields.
    """
    found, faults = _read(config)
    if faults:
        raise UserError(faults)
    return found


def _read(config: SweepConfig) -> tuple[dict[str, str], list[Fault]]:
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for field, name in _on_disk(config):
        try:
            found[field] = _digest(field, expanded(resolve(name)))
        except (OSError, ModuleNotFoundError) as error:
            faults.append(Fault(field, f"cannot be read: {error}"))
    return found, faults


def edited_meanwhile(before: Mapping[str, str], config: SweepConfig) -> str | None:
    """A warning that files were edited or deleted while trials read them; None if none was.

    The data do not count: trials have their token ids. `before`: digests when the trials began.
    """
    now, _ = _read(config)
    fields = [field for field in before if field not in _DATA_FIELDS]
    if not (edited := [field for field in fields if now.get(field) != before[field]]):
        return None
    return (
        f"{', '.join(edited)} changed while trials ran: trials that read it since cannot be "
        "compared with the base; put it back, delete their folders and run the same command again"
    )


def _on_disk(config: SweepConfig) -> Iterator[tuple[str, str]]:
    for field, name in named_inputs(config):
        is_counted = field == "model.name" or not name.startswith(PACKAGE_SCHEME)
        if is_counted and (is_local(name) or Path(name).exists()):
            yield field, name


def _digest(field: str, path: Path) -> str:
    """Digest of a file, or of the files in a folder that count; those of a model are sampled."""
    if field == "model.name":
        return content_digest(path)
    digest = hashlib.sha256()
    has_tasks = field.startswith(_TASK_DIRS) and path.is_dir()
    for file in task_files(path) if has_tasks else visible_files(path):
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}:{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:  # all of it: an edit may keep the size
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
