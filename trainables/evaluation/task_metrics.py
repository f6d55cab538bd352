"""The metrics that the harness gives of a task, and which of them counts as its accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainables.errors import Fault, UserError
from trainables.evaluation.outcomes import is_number
from trainables.evaluation.tasks import LoadedTask

_PREFERRED = ("acc", "exact_match", "mcq_acc", "em", "f1", "bleu")
ByFilter = dict[tuple[str, str], float]  # by metric and filter


def values_and_errors(result: dict[str, Any], name: str) -> tuple[ByFilter, ByFilter]:
    """The harness's numbers for a task or group, and their standard errors."""
    found: ByFilter = {}
    errors: ByFilter = {}
    for metric, filter_name, value in _entries(result, name):
        if not is_number(value):
            continue
        if metric.endswith("_stderr"):
            errors[metric.removesuffix("_stderr"), filter_name] = float(value)
        else:
            found[metric, filter_name] = float(value)
    return found, errors


def _entries(result: dict[str, Any], name: str) -> Iterator[tuple[str, str, Any]]:
    """What the harness gives of a task or group: metric, filter and value."""
    used = {sample["filter"] for of_task in result["samples"].values() for sample in of_task}
    filters = sorted(used, key=len, reverse=True)
    for key, value in result["results"][name].items():
        # Either may have a comma in its name.
        filter_name = next((each for each in filters if key.endswith(f",{each}")), None)
        if filter_name is not None:
            yield key.removesuffix(f",{filter_name}"), filter_name, value


def choose_metric(
    loaded: LoadedTask, found: Mapping[tuple[str, str], float], result: dict[str, Any]
) -> tuple[str, str]:
    """The metric and filter of the values that count as a task's accuracy.

    Raises:
        UserError: there are none, or not those that the suite names.
    """
    task = loaded.task
    names = [metric for metric, _ in found]
    by_preference = (task.metric, *_PREFERRED, *names)
    metric = next((name for name in by_preference if name in names), "")
    filter_name = task.filter or next((name for known, name in found if known == metric), "")
    if not found:
        rule = f"task {task.label} gives no number"
        given = [
            f"{_named(name, used_filter)} {value}"
            for name, used_filter, value in _entries(result, task.label)
            if not name.endswith("_stderr")
        ]
        lists = "metric_list, or of a group aggregate_metric_list,"
        remedy = f"it gives {', '.join(given)}" if given else f"see which its {lists} names"
        raise UserError([Fault(f"eval.{loaded.role}", rule, remedy)])
    if (task.metric and metric != task.metric) or (metric, filter_name) not in found:
        wanted = _named(task.metric or metric, filter_name)
        rule = f"task {task.label} gives no {wanted}"
        known = ", ".join(_named(*each) for each in found)
        raise UserError([Fault(f"eval.{loaded.role}", rule, f"it gives {known}")])
    return metric, filter_name


def _named(metric: str, filter_name: str) -> str:
    return f"{metric} (filter {filter_name})"


def check_is_a_skill(loaded: LoadedTask, metric: str, metrics: Sequence[str]) -> None:
    """Check that higher is better for one of the metrics, as for all compared with the base.

    Raises:
        UserError: it is an error measure, such as perplexity.
    """
    directions = [task.higher_is_better() or {} for task in loaded.tasks["tasks"].values()]
    errors = {name for name in metrics if any(known.get(name) is False for known in directions)}
    if metric in errors:
        rule = f"task {loaded.task.label}: its {metric} is better where it is lower"
        skills = [name for name in dict.fromkeys(metrics) if name not in errors]
        remedy = "leave it out; drift on texts is measured by eval.general_text"
        remedy = f"set its `metric` to {' or '.join(skills)}" if skills else remedy
        raise UserError([Fault(f"eval.{loaded.role}", rule, remedy)])
