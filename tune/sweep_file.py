"""From a YAML file to a `SweepConfig`, with every fault found and the line it is on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from trainables.errors import Fault, UserError
from trainables.locations import PACKAGE_SCHEME, is_local
from tune.sweep_config import SweepConfig

BUNDLED = Path(__file__).parent / "sweeps"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
Location = tuple[str | int, ...]


def bundled_sweeps() -> list[str]:
    """Names of the sweeps that come with the project."""
    return sorted(file.stem for file in BUNDLED.glob("*.yaml"))


def load_sweep(name_or_path: str, overrides: list[str]) -> SweepConfig:
    """Read, override and validate a sweep.

    Args:
        name_or_path: a bundled sweep's name, or a path.
        overrides: `KEY=VALUE`, KEY dotted, VALUE in YAML.

    Raises:
        UserError: every fault found.
    """
    file = _find(name_or_path)
    text = file.read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(text)
        lines = dict(_lines(yaml.compose(text, Loader=yaml.SafeLoader), ()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise UserError([Fault("", f"is no valid YAML: {error}", location=where)]) from error
    if not isinstance(raw, dict):
        raise UserError([Fault("", "a sweep file must be a mapping", location=str(file))])
    raw = {str(key): _expand_variables(value, (str(key),)) for key, value in raw.items()}
    for override in overrides:
        _override(raw, override)
    try:
        config = SweepConfig.model_validate(_anchor_paths(raw, file.parent.absolute()))
    except ValidationError as error:
        raise UserError(_faults(error, lines, file)) from error
    return config


def _find(name_or_path: str) -> Path:
    bundled = BUNDLED / f"{name_or_path}.yaml"
    path = bundled if bundled.is_file() else Path(name_or_path).expanduser()
    if not path.is_file():
        names = bundled_sweeps()
        near = get_close_matches(name_or_path, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"bundled sweeps: {', '.join(names)}"
        raise UserError([Fault("SWEEP", f"no such file or bundled sweep: {name_or_path}", hint)])
    return path


def _lines(node: Any, location: Location) -> Iterator[tuple[Location, int]]:
    """Line (from 1) of each key and item of a YAML document."""
    if node is None:
        return
    yield location, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, key.value)
            yield from _lines(value, inner)
            yield inner, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*location, index))


def _expand_variables(value: Any, location: Location) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` by environment variables."""
    if isinstance(value, dict):
        return {key: _expand_variables(inner, (*location, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand_variables(inner, (*location, i)) for i, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name, default)
        if found is None:
            raise UserError(
                [
                    Fault(
                        _dotted(location),
                        f"needs the environment variable {name}, which is not set",
                        f"export {name}=...",
                    )
                ]
            )
        return found

    return _VARIABLE.sub(replace, value)


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError([Fault("--set", f"must read KEY=VALUE, got {override!r}")])
    *parents, last = key.split(".")
    target: Any = raw
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        if not isinstance(target, (dict, list)):
            raise UserError([Fault("--set", f"{key}: {part} holds a value, not a section")])
    target[int(last) if isinstance(target, list) else last] = _scalar(text)


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


_PATHS: tuple[tuple[str, str], ...] = (
    ("model", "name"),
    ("data", "path"),
    ("data", "validation_path"),
    ("eval", "general_text"),
    ("deepspeed", "config_file"),
)


def _anchor_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make paths absolute: they are written relative to the sweep file."""
    for section, key in _PATHS:
        part = raw.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = _anchored(part[key], folder)
    suite = raw.get("eval")
    if isinstance(suite, dict):
        if isinstance(suite.get("task_dirs"), list):
            suite["task_dirs"] = [
                _anchored(path, folder, must_be_local=True) for path in suite["task_dirs"]
            ]
        for role in ("in_domain", "retention", "ood"):
            for task in suite.get(role) or ():
                if isinstance(task, dict) and isinstance(task.get("data_files"), dict):
                    task["data_files"] = {
                        split: _anchored(path, folder) for split, path in task["data_files"].items()
                    }
    return raw


def _anchored(path: Any, folder: Path, must_be_local: bool = False) -> Any:
    if not isinstance(path, str) or path.startswith(PACKAGE_SCHEME):
        return path
    expanded = Path(path).expanduser()
    local = must_be_local or is_local(path) or (folder / expanded).exists()
    return str(folder / expanded) if local else path


def _faults(error: ValidationError, lines: dict[Location, int], file: Path) -> list[Fault]:
    faults = []
    for detail in error.errors():
        location = tuple(part for part in detail["loc"] if _is_written(part))
        field, rule, remedy = _dotted(location), detail["msg"], ""
        if detail["type"] == "extra_forbidden":
            rule, remedy = _unknown_key(location)
        elif detail["type"] == "missing":
            rule = "is required and absent"
        elif detail["type"] == "value_error":
            for message in str(detail["ctx"]["error"]).splitlines():
                inner, separator, rest = message.partition(": ")
                named = separator and re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", inner)
                faults.append(
                    Fault(
                        inner if named else field,
                        rest if named else message,
                        location=_where(lines, _split(inner) if named else location, file),
                    )
                )
            continue
        else:
            rule = f"{rule[0].lower()}{rule[1:]}, got {detail['input']!r}"
        faults.append(Fault(field, rule, remedy, _where(lines, location, file)))
    return list(dict.fromkeys(faults))


def _is_written(part: str | int) -> bool:
    """Pydantic puts names of validators and of union members into locations; leave them out."""
    return isinstance(part, int) or (bool(re.fullmatch(r"[a-z_0-9]+", part)) and part != "tuple")


def _split(dotted: str) -> Location:
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


def _where(lines: dict[Location, int], location: Location, file: Path) -> str:
    while location and location not in lines:
        location = location[:-1]
    return f"{file}:{lines[location]}" if location in lines else str(file)


def _dotted(location: Location) -> str:
    return ".".join(map(str, location))


def _unknown_key(location: Location) -> tuple[str, str]:
    """The fault of an unknown key, with the nearest one known at the same place."""
    models: list[type[BaseModel]] = [SweepConfig]
    for part in location[:-1]:
        annotations = [
            model.model_fields[str(part)].annotation
            for model in models
            if str(part) in model.model_fields
        ]
        models = [found for each in annotations for found in _models_in(each)] or models
    known = sorted({name for model in models for name in model.model_fields})
    near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return "unknown key", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
