"""Names of tasks that no file of the harness or of the user holds, told before anything runs.

The harness decides, and the driver does not import it: it takes seconds to read its 14,000 files of
YAML. Whether they hold a name at all is soon known.
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
from trainables.storage.locations import resolve

_NAME = re.compile(r"""^\s*["']?(?:task|group)["']?\s*:\s*["']?([\w.\-]+)""", re.MULTILINE)


def faults_of_task_names(suite: EvalSuite) -> Iterator[Fault]:
    """Tasks of a suite that are named nowhere; its folders exist."""
    folders = [resolve(folder) for folder in suite.task_dirs]
    spec = find_spec("lm_eval")
    installed = (spec and spec.submodule_search_locations) or ()
    of_harness = [Path(place) / "tasks" for place in installed]
    places = [*map(Path, folders), *of_harness]
    absent = _absent({task.task for _, task in suite.tasks()}, places)
    if not absent or not of_harness:
        return
    texts = (text for place in places for text in _texts(_files(place)))
    known = {name for text in texts for name in _NAME.findall(text)}
    for role, task in suite.tasks():
        if task.task in absent:
            yield unknown_task(role, task.task, known, folders)


def _absent(names: set[str], folders: Sequence[Path]) -> set[str]:
    """The names that stand in no text of the folders, whatever they would mean there."""
    rest = {name: re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").search for name in names}
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
            if name.endswith(".yaml"):  # as the harness looks for them
                yield f"{place}/{name}"


def _texts(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        with suppress(OSError):
            yield Path(file).read_text(encoding="utf-8", errors="replace")
