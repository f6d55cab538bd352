"""The files that the tasks in a folder are made of.

A folder of tasks is often the project's own, with the sweep file, the sweeps' output and much else
in it, none of which says anything about a task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

_IS_TASK = re.compile(r"^(task|group|tag|include)\s*:", re.MULTILINE)
_MODULE = re.compile(r"(?:!function|\bimport|\bfrom)\s+\.?(\w+)")
_FILE_NAME = re.compile(r"[\w*?\[\]-][\w.*?\[\]-]*\.\w+")
_INCLUDED = re.compile(r"^include\s*:.*?([^\s/'\"]+)['\"]?\s*$", re.MULTILINE)
_NAMING = {".yaml", ".yml", ".py", ""}  # a template that others include often has no suffix
_SWEEP = "sweep.json"


def task_files(folder: Path) -> list[Path]:
    """Files that define tasks, and those that are named in them or in their Python, and so on.

    A Python file is named as a module, any other by its own name or a pattern that it matches.
    """
    files = sorted(_files(folder))
    yamls = [file for file in files if file.suffix in {".yaml", ".yml"}]
    found = [file for file in yamls if _IS_TASK.search(_text(file))]
    for file in found:  # grows meanwhile
        if file.suffix in _NAMING:
            text = _text(file)
            modules = set(_MODULE.findall(text))
            names = [*_FILE_NAME.findall(text), *_INCLUDED.findall(text)]
            found += [f for f in files if f not in found and _is_named(f, modules, names)]
    return sorted(found)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, without hidden ones, compiled code and those of sweeps."""
    for place, folders, names in os.walk(folder):
        inner = [name for name in folders if not name.startswith((".", "__pycache__"))]
        folders[:] = [name for name in inner if not Path(place, name, _SWEEP).exists()]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_named(file: Path, modules: set[str], names: list[str]) -> bool:
    is_module = file.suffix == ".py" and file.stem in modules
    return is_module or any(fnmatch(file.name, name) for name in names)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
