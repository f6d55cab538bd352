"""The files that a sweep file names, and digests by which an edit between two starts is seen.

The training data count, too: a sweep keeps the token ids of its first start, so an edit would
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
    """Model, data and files that a sweep file names, on a hub or a disk, each with its field."""
    data = config.data
    paths = (data.path, data.validation_path, data.replay.path if data.replay else None)
    of_data = [(f, path) for f, path in zip(_DATA_FIELDS, paths, strict=True) if path]
    return [("model.name", config.model.name), *of_data, *_named_files(config)]


def named_paths(config: SweepConfig) -> list[tuple[str, str]]:
    """Files and folders that a sweep file names, other than the data, each with its field."""
    model = [("model.name", config.model.name)] if is_local(config.model.name) else []
    return [*_named_files(config), *model]


def paths_of_trials(config: SweepConfig) -> list[str]:
    """Files and folders that a trial reads, wherever it runs, besides those of packages."""
    named = [location for _, location in named_paths(config) if "://" not in location]
    return [str(expanded(location)) for location in named]


def _named_files(config: SweepConfig) -> list[tuple[str, str]]:
    """All but data and model; digests are recorded under these fields."""
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
    """A digest of what each field names, by field; of what packages carry, of the model alone.

    Raises:
        UserError: files that this user may not read; names all of their fields.
    """
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for field, name in _on_disk(config):
        try:
            found[field] = _digest(field, expanded(resolve(name)))
        except (OSError, ModuleNotFoundError) as error:
            faults.append(Fault(field, f"cannot be read: {error}"))
    if faults:
        raise UserError(faults)
    return found


def edited_meanwhile(before: Mapping[str, str], config: SweepConfig) -> str | None:
    """That files were edited, or went, while trials read them; None if none was.

    The data do not count: trials have their token ids.

    Args:
        before: their digests as the trials began.
        config: the sweep.
    """
    edited = []
    for field, name in named_inputs(config):
        if field in before and field not in _DATA_FIELDS:
            try:
                is_as_before = _digest(field, expanded(resolve(name))) == before[field]
            except (OSError, ModuleNotFoundError):
                is_as_before = False
            edited += [] if is_as_before else [field]
    if not edited:
        return None
    return (
        f"{', '.join(edited)} changed while trials ran: those that read it since were measured "
        "otherwise than the base; put it back, delete the folders of these trials and type the "
        "same command again"
    )


def _on_disk(config: SweepConfig) -> Iterator[tuple[str, str]]:
    for field, name in named_inputs(config):
        is_counted = field == "model.name" or not name.startswith(PACKAGE_SCHEME)
        if is_counted and (is_local(name) or Path(name).exists()):
            yield field, name


def _digest(field: str, path: Path) -> str:
    """Of a file, or of the files of a folder that count; those of a model are sampled."""
    if field == "model.name":
        return content_digest(path)
    digest = hashlib.sha256()
    of_tasks = field.startswith(_TASK_DIRS) and path.is_dir()
    for file in task_files(path) if of_tasks else visible_files(path):
        inside = file.relative_to(path).as_posix()
        digest.update(f"{inside}:{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:  # whole: an edit may leave the size of a large file
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
