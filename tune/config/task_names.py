"""Names of tasks that no file of the harness or of the user holds, told before anything runs.

The harness decides, and the driver does not import it: it takes seconds to read its 14,000 files of
YAML. Whether a line of theirs may give a name to something is soon known. A user's own are few, and
may be written in any way, so that it is enough for them to hold the name at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from trainables.config import EvalSuite
from trainables.errors import Fault
from trainables.evaluation.unknown_task import unknown_task
from trainables.files.locations import resolve

_STANDS = r"(?<![\w.\-]){0}(?![\w.\-])"
# Alone on its line, or as an item of a list, it may be a tag, which tasks are found by, too.
_NAMED = (
    r"""^[ \t-]*(?:["']?(?:task|group|tag)["']?[ \t]*:.*"""
    rf"""{_STANDS}|["']?{{0}}["']?[ \t]*(?:\#|$))"""
)
_NAME = re.compile(r"""^\s*["']?(?:task|group)["']?\s*:\s*["']?([\w.\-]+)""", re.MULTILINE)


def faults_of_task_names(suite: EvalSuite) -> Iterator[Fault]:
    """Tasks of a suite that are named nowhere; its folders exist."""
    folders = [resolve(folder) for folder in suite.task_dirs]
    asked = {task.task for _, task in suite.tasks()}
    absent = _absent(asked, map(Path, folders), _STANDS)
    places = _places_of_harness()
    if not absent or not (absent := _absent(absent, places, _NAMED)) or not places:
        return
    texts = (text for place in (*map(Path, folders), *places) for text in _texts(_files(place)))
    known = {name for text in texts for name in _NAME.findall(text)}
    for role, task in suite.tasks():
        if task.task in absent:
            yield unknown_task(role, task.task, known, folders)


def _places_of_harness() -> Sequence[Path]:
    spec = find_spec("lm_eval")
    return [Path(place) / "tasks" for place in (spec and spec.submodule_search_locations) or ()]


def _absent(names: set[str], folders: Iterable[Path], pattern: str) -> set[str]:
    """The names that no text of the folders has as a pattern tells, of which they are part."""
    own = {name: pattern.format(re.escape(name)) for name in names}
    rest = {name: re.compile(text, re.MULTILINE).search for name, text in own.items()}
    families = {name.split("_")[0] for name in names}  # their files nearly always bear it
    for folder in folders:
        files = sorted(_files(folder), key=lambda file: not any(f in file for f in families))
        for text in _texts(files):
            for name in [name for name, search in rest.items() if name in text and search(text)]:
                del rest[name]
            if not rest:
                return set()
    return set(rest)


def _files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith("yaml"):  # tags may stand in a template, such as `_arc_yaml`, alone
                yield f"{place}/{name}"


def _texts(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        with suppress(OSError):
            yield Path(file).read_text(encoding="utf-8", errors="replace")
