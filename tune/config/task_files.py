"""The files that the tasks in a folder are made of, whose edits are noticed between two starts.

Such a folder is often the project's own, with sweep files, output and code that no task uses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

_TASK = re.compile(r"""^["']?(task|group|tag|include|class)["']?\s*:""", re.MULTILINE)
_MODULES = re.compile(r"(?:!function[ \t]+([\w.]+)\.|\b(?:from|import)[ \t]+([\w., \t]+))")
_NAMES = re.compile(r"[\w.*-]*\w[\w.*-]*")
# Folders with one of these are a sweep's, or an environment's of Python.
_FOREIGN = ("sweep.json", "pyvenv.cfg")


def task_files(folder: Path) -> list[Path]:
    """Files that define tasks, those that these name, and so on."""
    rest = {*_visible_files(folder)}
    is_yaml = {".yaml", ".yml"}
    new = {file for file in rest if file.suffix in is_yaml and _TASK.search(_text(file))}
    found: set[Path] = set()
    while new:
        found |= new
        rest -= new
        texts = [_text(file) for file in new if file.suffix in {*is_yaml, ".py", ""}]
        names = {name for text in texts for name in _NAMES.findall(text)}
        patterns = {name for name in names if "*" in name}
        lists = [" ".join(groups) for text in texts for groups in _MODULES.findall(text)]
        modules = {name for text in lists for name in re.findall(r"\w+", text)}
        new = {
            file
            for file in rest
            if (file.stem in modules if file.suffix == ".py" else file.name in names)
            or any(fnmatch(file.name, pattern) for pattern in patterns)
        }
    return sorted(found)


def _visible_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        inner = [name for name in folders if not name.startswith((".", "__pycache__"))]
        folders[:] = [n for n in inner if not any(Path(place, n, own).exists() for own in _FOREIGN)]
        files = (Path(place, name) for name in names if not name.startswith("."))
        yield from (file for file in files if file.is_file())


def _text(file: Path) -> str:
    """Empty if this user may not read it: the harness says so if it needs it."""
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""
