"""The files that the tasks in a folder are made of, and what they say.

A folder of tasks is often the project's own, with the sweep file, the sweeps' output and much else
in it, none of which says anything about a task.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

import yaml

_IS_TASK = re.compile(r"""^["']?(task|group|tag|include|class)["']?\s*:""", re.MULTILINE)
# Under these keys of a task a folder is named, too; else it may be a split of the same name.
_OF_DATA = {"dataset_path", "data_dir", "data_files", "dataset_kwargs"}
# Folders with one of these are a sweep's, or an environment's of Python.
_FOREIGN = ("sweep.json", "pyvenv.cfg")
_LONGEST_NAME = 255


def task_files(folder: Path) -> list[Path]:
    """Files that define tasks, and those that are named in them or in their Python, and so on.

    They are looked for beside the file that names them, and in the folder itself.
    """
    rest = [file for file in _yaml_files(folder) if _IS_TASK.search(_text(file))]
    found: set[Path] = set()
    while rest:
        file = rest.pop()
        if file not in found:
            found.add(file)
            named = _named_by_python if file.suffix == ".py" else _named_by_yaml
            rest += [path for path in named(file, folder) if path.is_relative_to(folder)]
    return sorted(found)


def task_named(name: str, folders: Iterable[Path]) -> dict[str, Any]:
    """What the folders say of a task; nothing if no file defines it, or several do."""
    texts = (_text(file) for folder in folders for file in _yaml_files(folder))
    found = [
        content
        for text in texts
        if name in text
        and isinstance(content := _content(text), dict)
        and content.get("task") == name
    ]
    return found[0] if len(found) == 1 else {}


def asked_split(spec: dict[str, Any]) -> str | None:
    """The split that a task's questions are of, if it names one."""
    split: str | None = spec.get("test_split") or spec.get("validation_split")
    return split


def _yaml_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        inner = [name for name in folders if not name.startswith((".", "__pycache__"))]
        folders[:] = [n for n in inner if not any(Path(place, n, own).exists() for own in _FOREIGN)]
        files = (Path(place, name) for name in names if not name.startswith("."))
        yield from (f for f in files if f.suffix in {".yaml", ".yml"} and f.is_file())


class _Function(str):
    """Such as `module.function`, of a tag `!function`."""


class _Loader(yaml.SafeLoader):
    """Knows the harness's tag, and lets all others be."""


_Loader.add_constructor("!function", lambda loader, node: _Function(node.value))
_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _named_by_yaml(file: Path, folder: Path) -> Iterator[Path]:
    if file.suffix not in {".yaml", ".yml", ""}:  # a template that others include may have none
        return
    for keys, text in _texts(_content(_text(file))):
        if isinstance(text, _Function):
            module, _, _ = text.rpartition(".")
            yield from _files_at(f"{module.replace('.', '/')}.py", file, folder)
        else:
            yield from _files_at(text, file, folder, or_folder=not _OF_DATA.isdisjoint(keys))


def _content(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - derived from the safe one
    except (yaml.YAMLError, ValueError):  # the latter of a date that there is not
        return None


def _named_by_python(file: Path, folder: Path) -> Iterator[Path]:
    try:
        nodes = list(ast.walk(ast.parse(_text(file))))
    except SyntaxError:
        return
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _files_at(node.value, file, folder)
        for module in _imported(node):
            yield from _files_at(f"{module}.py", file, folder)
            yield from _files_at(f"{module}/__init__.py", file, folder)


def _imported(node: ast.AST) -> Iterator[str]:
    """Modules, as paths relative to the file that imports them."""
    if isinstance(node, ast.Import):
        yield from (alias.name.replace(".", "/") for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        module = "../" * (node.level - 1) + (node.module or "").replace(".", "/")
        yield from (module, *(f"{module}/{alias.name}".lstrip("/") for alias in node.names))


def _texts(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in a task's YAML, after the keys that it stands under."""
    if isinstance(content, str):
        yield keys, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(value, (*keys, str(key)))
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, keys)


def _files_at(name: str, file: Path, folder: Path, or_folder: bool = False) -> Iterator[Path]:
    """The files at a path, or pattern, beside a file or in the folder."""
    if len(name) > _LONGEST_NAME or "\n" in name or "\0" in name:
        return
    if not re.search(r"\w", name):  # such as "**" of Markdown, which as a pattern fits every file
        return
    for place in {file.parent, folder}:
        for match in glob(name, root_dir=place):  # noqa: PTH207 - absolute ones, too
            path = Path(os.path.normpath(place / match))
            if path.is_file():
                yield path
            elif or_folder and path.is_dir() and not folder.is_relative_to(path):
                yield from (inner for inner in path.rglob("*") if inner.is_file())


def _text(file: Path) -> str:
    """Empty if this user may not read it: the harness says so if it needs it."""
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""
