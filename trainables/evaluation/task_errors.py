"""Error messages for tasks that cannot be loaded."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from trainables.compat.lm_eval import task_spec
from trainables.config import EvalTask, Role
from trainables.errors import Fault, did_you_mean, error_text

# Keys of a task that the harness fills in from the first row as it loads it.
_FROM_ROWS = ("doc_to_text", "doc_to_target", "doc_to_choice")


class UnusableTask(Exception):
    """A task that cannot be evaluated; the message says why."""


def why_not_loaded(error: Exception) -> str:
    """What went wrong while a task was loaded, and in which of its templates or functions."""
    if isinstance(error, UnusableTask):
        return str(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in frames:
        key, values = frame.f_code.co_name, frame.f_locals
        if key in _FROM_ROWS and "doc" in values and "self" in values:
            template, fields = values["self"].get_config(key), ", ".join(values["doc"])
            return f"its {key}, {template!r}, does not fit rows of {fields}: {_cause(error)}"
    if isinstance(error, StopIteration) or str(error).endswith("out of bounds for size 0"):
        return "its data hold no rows, or its process_docs leaves none"
    if isinstance(error, KeyError) and error.args == (None,):  # a metric without an aggregation
        return f"the harness does not know its metric {frames[-1].f_locals.get('metric_name')}"
    return _cause(error)


def _cause(error: BaseException) -> str:
    """The innermost cause, such as the parser's error behind the reader's."""
    while error.__cause__ is not None and not isinstance(error, KeyError):
        error = error.__cause__
    return error_text(error)


def place_of(task: EvalTask, file: Path | None, folders: Sequence[str]) -> str:
    """The files that the user gave to a task, or the user's file that defines it."""
    if task.data_files:
        return ", ".join(f"{split}: {name}" for split, name in task.data_files.items())
    is_own = file is not None and any(file.is_relative_to(folder) for folder in folders)
    return str(file) if is_own else ""


def unknown_task(role: Role, name: str, known: Sequence[str], folders: Sequence[str]) -> Fault:
    """No task has this name; the file that defines it may be malformed."""
    where = f"{', '.join(folders)} or the harness" if folders else "the harness"
    rule = f"no task named {name} in {where}"
    for file, error in _malformed_files(name, folders):
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        rule = f"{rule}, and a file that names it cannot be read: {error_text(error)}"
        return Fault(f"eval.{role}", rule, location=place)
    hint = did_you_mean(name, known) or "see `lm-eval ls tasks` for the harness's own"
    return Fault(f"eval.{role}", rule, hint)


def _malformed_files(name: str, folders: Sequence[str]) -> Iterator[tuple[Path, Exception]]:
    """Files that contain a task's name and that the harness skipped because of an error."""
    is_named = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").search
    for file in (file for folder in folders for file in sorted(Path(folder).rglob("*.yaml"))):
        with suppress(OSError):
            if is_named(file.read_text(encoding="utf-8", errors="replace")):
                try:
                    task_spec(file, resolve_func=False)
                except Exception as error:  # the harness's, YAML's, or Python's of a value
                    yield file, error
