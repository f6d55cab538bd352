"""Reads a sweep file into a `SweepConfig`, reporting every fault with its line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trainables.config import ROLES
from trainables.errors import Fault, UserError, collecting
from trainables.storage.locations import RELATIVE, absence, direct, expanded, is_local
from tune.config.cross_validation import contradictions
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_errors import reworded
from tune.config.sweep_keys import KeyPath, dotted, split_key

BUNDLED = Path(__file__).parents[1] / "sweeps"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_EXTENDS = "extends"
# Values that are paths; `*` stands for an index or a key. Those of the second group are local.
_PATHS = {"model.name", "data.path", "data.validation_path", "data.replay.path"}
_LOCAL_PATHS = {
    "model.chat_template",
    "eval.general_text",
    "eval.task_dirs.*",
    "deepspeed.config_file",
    "warm_start.*",
} | {f"eval.{role}.*.data_files.*" for role in ROLES}


class _Loader(yaml.SafeLoader):
    """Reads dates and times as texts: in YAML, 1:30 is 90."""

    def text_or_number(self, node: Any) -> Any:
        construct = yaml.SafeLoader.yaml_constructors[node.tag]
        return node.value if ":" in node.value else construct(self, node)


_Loader.yaml_constructors = yaml.SafeLoader.yaml_constructors | {
    "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str,
    "tag:yaml.org,2002:int": _Loader.text_or_number,
    "tag:yaml.org,2002:float": _Loader.text_or_number,
}
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: a number like 0x_
_QUOTE = 'indent by spaces, and put texts with any of { [ * & ! % @ or ": " in quotes'


def _why_not_yaml(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


@dataclass(frozen=True)
class _Source:
    """Values of a sweep file, and where each is set (`file:line` or `--set ...`)."""

    values: dict[str, Any]
    places: dict[KeyPath, str]
    file: Path

    def where(self, location: KeyPath) -> str:
        """Where a value is set, or else the nearest value."""
        while location:
            if location in self.places:
                return self.places[location]
            for inside, place in self.places.items():
                if inside[: len(location)] == location:
                    return place
            location = location[:-1]
        return str(self.file)


def bundled_sweeps() -> list[str]:
    """Names of the sweeps that come with the project."""
    return sorted(file.stem for file in BUNDLED.glob("*.yaml"))


def load_sweep(
    name_or_path: str, overrides: list[str], typed: Mapping[str, str] | None = None
) -> SweepConfig:
    """Read, override and validate a sweep.

    A file may build on another with `extends: NAME_OR_PATH`; its sections are merged into the
    other's, and its lists and values replace the other's. Paths in a file are relative to the
    file; those in `overrides` or beginning with an environment variable to the working directory.

    Args:
        name_or_path: a bundled sweep's name or a path.
        overrides: `KEY=VALUE`, KEY dotted, VALUE in YAML.
        typed: what the user typed for some of them instead of `--set`.

    Raises:
        UserError: the sweep is at fault; names every fault found.
    """
    source = _read(_find(name_or_path, Path(), "SWEEP"), ())
    faults: list[Fault] = []
    for override in overrides:
        with collecting(faults):
            _override(source, override, (typed or {}).get(override, f"--set {override}"))
    faults += _unset_variables(source) or _read_deepspeed_file(source)
    try:
        config = SweepConfig.model_validate(source.values)
        found = [
            replace(fault, location=source.where(split_key(fault.field)))
            for fault in contradictions(config)
        ]
    except ValidationError as error:
        found = reworded(error, source.where, source.values)
    faulty = tuple(f"{fault.field}." for fault in faults)
    faults += [fault for fault in found if not f"{fault.field}.".startswith(faulty)]
    if faults:
        raise UserError(faults)
    return config


def _find(name_or_path: str, folder: Path, field: str) -> Path:
    bundled = BUNDLED / f"{name_or_path}.yaml"
    path = folder / expanded(name_or_path) if absence(bundled, "") else bundled
    why_absent = absence(path, "file or bundled sweep")
    if why_absent or not path.is_file():
        names = bundled_sweeps()
        near = get_close_matches(Path(name_or_path).stem, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"bundled sweeps: {', '.join(names)}"
        rule = why_absent or "must be a YAML file, is a folder"
        raise UserError([Fault(field, f"{rule}: {name_or_path}", hint)])
    return path


def _read(file: Path, extending: tuple[Path, ...]) -> _Source:
    """Values of a file merged over those of the file it extends, with paths made absolute."""
    if file.resolve() in extending:
        raise UserError([Fault(_EXTENDS, f"goes in a circle: {file}")])
    values, places = _content(file)
    source = _Source(_resolved(values, (), file.parent.absolute()), places, file)
    if _EXTENDS not in source.values:
        return source
    name = source.values.pop(_EXTENDS)
    if not isinstance(name, str):
        place = source.where((_EXTENDS,))
        raise UserError([Fault(_EXTENDS, "must name one sweep", location=place)])
    parent = _read(_find(name, file.parent, _EXTENDS), (*extending, file.resolve()))
    places = {key: place for key, place in parent.places.items() if not _replaced(key, source)}
    return _Source(_merged(parent.values, source.values), places | source.places, file)


def _content(file: Path) -> tuple[dict[Any, Any], dict[KeyPath, str]]:
    """The values of a file as they are written, and where."""
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.load(text, _Loader)  # noqa: S506 - a safe one
        node = yaml.compose(text, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError([Fault("SWEEP", f"cannot be read: {error}", location=str(file))]) from error
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        rule = f"is no valid YAML: {_why_not_yaml(error)}"
        remedy = _QUOTE if isinstance(error, yaml.MarkedYAMLError) else ""
        raise UserError([Fault("SWEEP", rule, remedy, where)]) from error
    if not isinstance(values, dict):
        raise UserError([Fault("SWEEP", "must be a mapping of sections", location=str(file))])
    return values, _places(file, node)


def _places(file: Path, node: Any) -> dict[KeyPath, str]:
    """Where a file sets each key and item.

    Raises:
        UserError: a key is given twice; YAML would use the last.
    """
    places: dict[KeyPath, str] = {}
    for location, line in _lines(node, ()):
        place = f"{file}:{line}"
        if location in places:
            rule = f"is given twice, first at {places[location]}"
            raise UserError([Fault(dotted(location), rule, "remove one", place)])
        places[location] = place
    return places


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def _replaced(location: KeyPath, above: _Source) -> bool:
    """Whether a location in the extended file is replaced by the extending one."""
    value: Any = above.values
    for part in location:
        if not isinstance(value, dict):
            return True
        if part not in value:
            return False
        value = value[part]
    return True


def _lines(node: Any, location: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """Line (from 1) of each key and item of a YAML document."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, key.value)
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*location, index)
            yield inner, value.start_mark.line + 1
            yield from _lines(value, inner)


def _resolved(value: Any, location: KeyPath, folder: Path) -> Any:
    """The value with variables filled in and paths made absolute."""
    if isinstance(value, dict):
        return {
            str(key): _resolved(inner, (*location, str(key)), folder)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_resolved(inner, (*location, i), folder) for i, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    filled_in = _VARIABLE.sub(_variable, value)
    kind = _path_kind(location)
    if kind is None or "://" in filled_in:
        return filled_in
    path = (Path.cwd() if value.startswith("${") else folder) / expanded(filled_in)
    local = kind in _LOCAL_PATHS or is_local(filled_in) or not absence(path, "")
    return direct(str(path)) if local else filled_in


def _path_kind(location: KeyPath) -> str | None:
    """The entry of `_PATHS` or `_LOCAL_PATHS` that the location is, if any."""
    parts = ["*" if isinstance(part, int) else part for part in location]
    for kind in (dotted(tuple(parts)), dotted((*parts[:-1], "*"))):
        if kind in _PATHS | _LOCAL_PATHS:
            return kind
    return None


def _variable(match: re.Match[str]) -> str:
    """The value of `${NAME}` or `${NAME:-default}`; the text itself if there is none."""
    name, default = match.groups()
    if default is None:
        return os.environ.get(name, match[0])
    return os.environ.get(name) or default


def _unset_variables(source: _Source) -> list[Fault]:
    return [
        Fault(
            dotted(location),
            f"needs the environment variable {name}, which is not set",
            f"export {name}=...",
            source.where(location),
        )
        for location, text in _texts(source.values, ())
        for name, _ in _VARIABLE.findall(text)
    ]


def _texts(value: Any, location: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*location, key))


def _read_deepspeed_file(source: _Source) -> list[Fault]:
    """Put the content of `deepspeed.config_file` into `deepspeed.config`; return what is wrong.

    So it is recorded, an edit between two starts is noticed, and other nodes need not see the file.
    """
    section, location = source.values.get("deepspeed"), ("deepspeed", "config_file")
    if not isinstance(section, dict) or not isinstance(section.get("config_file"), str):
        return []
    file, remedy = section["config_file"], "write DeepSpeed's JSON, or use deepspeed.config"
    if section.get("config") is not None:
        rule, remedy = "cannot be given beside deepspeed.config", "leave one of them out"
    else:
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                section["config"] = content
                return []
            rule = f"must hold a JSON object, got a {type(content).__name__}: {file}"
        except OSError as error:
            rule, remedy = f"cannot be read: {error}", RELATIVE
        except ValueError as error:
            rule = f"is no JSON: {file} ({error})"
    return [Fault(dotted(location), rule, remedy, source.where(location))]


def _override(source: _Source, override: str, typed: str) -> None:
    """Set `KEY=VALUE` in the source; faults in it name what the user typed."""
    key, separator, text = override.partition("=")
    location = split_key(key)
    if not separator or "" in location:
        raise _cannot_set(f"must read KEY=VALUE, got {override!r}")
    if location[0] == _EXTENDS:  # has been read already
        raise _cannot_set(f"cannot set {key}, got {override!r}", "set it in the file")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except _NOT_YAML as error:
        rule = f"{override}: the value is no valid YAML: {_why_not_yaml(error)}"
        raise _cannot_set(rule, "quote it") from error
    target: Any = source.values
    for depth, part in enumerate(location):
        is_last = depth == len(location) - 1
        if isinstance(target, dict):
            part = str(part)
            if not is_last and target.get(part) is None:
                target[part] = {}
        elif not isinstance(target, list):
            raise _cannot_set(f"{key}: {dotted(location[:depth])} holds a value, not a section")
        elif not isinstance(part, int) or part >= len(target):
            has = f"is a list of {len(target)}, it has no {part}"
            raise _cannot_set(f"{key}: {dotted(location[:depth])} {has}")
        if is_last:
            target[part] = _resolved(value, location, Path.cwd())
        else:
            target = target[part]
    for place in [place for place in source.places if place[: len(location)] == location]:
        del source.places[place]
    source.places[location] = typed


def _cannot_set(rule: str, remedy: str = "") -> UserError:
    return UserError([Fault("--set", rule, remedy)])
