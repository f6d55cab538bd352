"""What is told of tasks that cannot be loaded, or not be evaluated once they are."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lm_eval.api.registry import aggregation_registry, metric_registry
from lm_eval.api.task import ConfigurableTask

from trainables.compat.lm_eval import metric_functions, task_spec
from trainables.config import EvalTask, Role
from trainables.errors import Fault, did_you_mean, named
from trainables.evaluation.unknown_task import unknown_task

# Keys of a task that the harness fills in on its first document as it loads it.
_OF_CONFIG = ("doc_to_text", "doc_to_target", "doc_to_choice")
# Keys of a group's member by which it is a task of its own, spelt out in the group.
_OF_DATA = {"dataset_path", "custom_dataset", "class", "include"}


class Unfit(Exception):
    """A task that cannot be evaluated here, for a reason that needs no more words."""


def why_not_loaded(error: Exception) -> str:
    """What went wrong as a task was loaded, and in which of its templates or functions."""
    if isinstance(error, Unfit):
        return str(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    last, asked_by = frames[-1], _raised_by(error)
    # The harness, or the data's reader, asked for the first; a task's own code may raise it, too.
    if isinstance(error, StopIteration) and asked_by in ("lm_eval", "datasets"):
        return "its data hold no rows"
    if isinstance(error, IndexError) and str(error).endswith("out of bounds for size 0"):
        return "its data hold no rows, or its process_docs leaves none"
    if isinstance(error, KeyError) and error.args == (None,) and asked_by == "lm_eval":
        # It looks for the usual aggregation of a metric that names none.
        metric = last.f_locals.get("metric_name")
        known = did_you_mean(metric, metric_registry.keys()) or _listed(metric_registry)
        return f"its metric {metric} has no aggregation and is unknown; {known}"
    names = [frame.f_code.co_name for frame in frames]
    of_task = next((f"its {name}: " for name in names if name in _OF_CONFIG), "")
    if isinstance(error, TypeError) and not error.args and asked_by == "lm_eval" and of_task:
        return f"it has no {last.f_code.co_name} that the harness can read"
    return f"{of_task}{_cause(error)}"


def _raised_by(error: BaseException) -> str:
    """The package whose code raised an error, such as `lm_eval`."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).partition(".")[0] if frames else ""


def _cause(error: BaseException) -> str:
    """The innermost cause, such as the parser's error behind the reader's."""
    while error.__cause__ is not None:
        if isinstance(error, KeyError) and _raised_by(error) == "lm_eval":
            return " ".join(str(error.args[0]).split())  # it lists what there is
        error = error.__cause__
    return named(error)


def _listed(known: Any) -> str:
    return f"the harness has {', '.join(sorted(known.keys()))}"


def absent_names(name: str, index: Mapping[str, Any]) -> list[str]:
    """The name, or those in its group and in the groups of that, that no task or group has.

    Args:
        name: of a task, group or tag.
        index: all of them that the harness has found, by name.
    """
    groups: list[dict[str, Any]] = [{"task": [name]}]
    absent = []
    for group in groups:  # which grow meanwhile
        members = group.get("task")
        for member in members if isinstance(members, list) else []:
            spec = member if isinstance(member, dict) else {"task": member}
            called = str(spec.get("group", spec.get("task")))
            # Those spelt out in the group take its keys, as the harness hands them down.
            inner = index[called].cfg if called in index else _of_data(group) | spec
            if inner and isinstance(inner.get("task"), list) and inner not in groups:
                groups.append(inner)
            is_spelt_out = "group" in spec or bool(_of_data(group | spec))
            if called not in index and not is_spelt_out:
                absent.append(called)
    return [*dict.fromkeys(absent)]


def _of_data(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key in _OF_DATA}


def check_can_be_scored(task: Any) -> None:
    """Check that the harness has what a task names to score its documents by.

    Raises:
        Unfit: it has not, and would say so of the first document, or after the last one.
    """
    by_harness = _is_harness_s(task, "process_results") and not task.config.process_results
    if by_harness and _is_harness_s(task, "aggregation"):
        for metric, aggregate in task.aggregation().items():
            if aggregate is None:
                known = _listed(aggregation_registry)
                raise Unfit(f"the aggregation of its {metric} is unknown; {known}")
    if by_harness and task.OUTPUT_TYPE == "generate_until":
        for metric, function in metric_functions(task).items():
            if function is None:
                rule = f"its metric {metric} is neither the harness's nor found by `evaluate`"
                raise Unfit(f"{rule}; {_listed(metric_registry)}")
    lists = task.OUTPUT_TYPE == "multiple_choice"
    if lists and _is_harness_s(task, "construct_requests", "doc_to_choice"):
        choices = task.prompt or task.config.doc_to_choice
        if choices is None:
            raise Unfit("it has no doc_to_choice, which lists the answers of a multiple_choice")


def _is_harness_s(task: Any, *methods: str) -> bool:
    """Whether a task leaves these methods to the harness."""
    return isinstance(task, ConfigurableTask) and all(
        getattr(type(task), method) is getattr(ConfigurableTask, method) for method in methods
    )


def place_of(task: EvalTask, file: Path | None, folders: list[str]) -> str:
    """The files that the user has given to the task, or else has defined it in."""
    if task.data_files:
        return ", ".join(f"{split}: {name}" for split, name in task.data_files.items())
    is_own = file is not None and any(file.is_relative_to(folder) for folder in folders)
    return str(file) if is_own else ""


def fault_of_unknown(role: Role, name: str, known: list[str], folders: list[str]) -> Fault:
    """The fault of a name that is none of the known ones; its file may be one that is no YAML."""
    fault = unknown_task(role, name, known, folders)
    found = next(_unread(name, folders), None)
    if found is None:
        return fault
    file, error = found
    mark = getattr(error, "problem_mark", None)
    place = f"{file}:{mark.line + 1}" if mark else str(file)
    rule = f"{fault.rule}, and a file that names it cannot be read: {named(error)}"
    return Fault(f"eval.{role}", rule, location=place)


def _unread(name: str, folders: list[str]) -> Iterator[tuple[Path, Exception]]:
    """The files that name a task and that the harness has passed over, as they are no YAML."""
    names_it = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").search
    for file in (file for folder in folders for file in sorted(Path(folder).rglob("*.yaml"))):
        with suppress(OSError):
            if names_it(file.read_text(encoding="utf-8", errors="replace")):
                try:
                    task_spec(file, resolve_func=False)
                except Exception as error:  # the harness's, YAML's, or Python's of what YAML took
                    yield file, error
