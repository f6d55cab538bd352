"""The metrics that the harness gives of a task, and which of them counts as its accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainables import metric_keys
from trainables.errors import Fault, UserError
from trainables.evaluation.forgetting import effective_choices, mean_over_members
from trainables.evaluation.outcomes import (
    choices_per_answer,
    is_number,
    samples,
    scores_itself,
)
from trainables.evaluation.task_loading import LoadedTask
from trainables.records.schema import ItemScore, TaskScore

_OF_A_HUNDRED = ("bleu", "chrf")  # whatever the base reaches
_PREFERRED = ("acc", "exact_match", "mcq_acc", "em", "f1", "bleu")
ByFilter = dict[tuple[str, str], float]  # by metric and filter


def read_score(loaded: LoadedTask, result: dict[str, Any]) -> tuple[TaskScore, dict[str, float]]:
    """The task's accuracy, and all its numeric metrics under the project's keys.

    Raises:
        UserError: it gives no number that counts as an accuracy.
    """
    label = loaded.task.label
    found, errors = values_and_errors(result, label)
    metric, filter_name = choose_metric(loaded, found, result)
    check_is_a_skill(loaded, metric, [name for name, _ in found])
    metrics = {
        metric_keys.task_score(loaded.role, label, name): value
        for (name, used_filter), value in found.items()
        if used_filter == filter_name
    }
    stderr = errors.get((metric, filter_name))
    if stderr is not None:
        metrics[metric_keys.task_score(loaded.role, label, f"{metric}_stderr")] = stderr
    scored = list(samples(loaded, result, metric, filter_name))
    chance, choices = _guessing(scored, metric)
    score = TaskScore(
        role=loaded.role,
        metric=metric,
        filter=filter_name,
        value=found[metric, filter_name],
        stderr=stderr,
        chance=chance,
        choices=choices,
        items=len(scored),
    )
    return score, metrics


def _guessing(
    scored: Sequence[tuple[str | None, Any, dict[str, Any]]], metric: str
) -> tuple[float | None, float | None]:
    """`TaskScore.chance` and `TaskScore.choices`, of the documents' `samples`."""
    if any(scores_itself(task) for _, task, _ in scored):
        return None, None
    counts = [(member, choices_per_answer(task, sample, metric)) for member, task, sample in scored]
    if metric == "f1" and any(count is not None for _, count in counts):
        return None, None  # a guess's is a matter of how often each choice is the right one
    chance = mean_over_members((member, 1 / count if count else 0.0) for member, count in counts)
    choices = [(member, count) for member, count in counts if count is not None]
    return chance, effective_choices(choices) if choices else None


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
    for key, value in result["results"][name].items():
        metric, comma, filter_name = key.rpartition(",")  # a metric's name may have one, too
        if comma:
            yield metric, filter_name, value


def choose_metric(
    loaded: LoadedTask, found: Mapping[tuple[str, str], float], result: dict[str, Any]
) -> tuple[str, str]:
    """The metric and filter of the values that count as a task's accuracy.

    Raises:
        UserError: there are none, or not those that the suite names.
    """
    task = loaded.task
    names = [task.metric] if task.metric else [*_PREFERRED, *(name for name, _ in found)]
    fitting = (
        (metric, used_filter)
        for name in names
        for metric, used_filter in found
        if metric == name and task.filter in (None, used_filter)
    )
    if chosen := next(fitting, None):
        return chosen
    wanted = (task.metric or "number") + (f" (filter {task.filter})" if task.filter else "")
    given = [
        f"{name} (filter {used_filter}) {value}"
        for name, used_filter, value in _entries(result, task.label)
        if not name.endswith("_stderr")
    ]
    lists = "metric_list, or of a group aggregate_metric_list,"
    remedy = f"it gives {', '.join(given)}" if given else f"see which its {lists} names"
    rule = f"task {task.label} gives no {wanted}"
    raise UserError([Fault(f"eval.{loaded.role}", rule, remedy)])


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


def check_is_a_share(loaded: LoadedTask, score: TaskScore, items: Sequence[ItemScore]) -> None:
    """Check that the metric can be averaged with other tasks' accuracies.

    Raises:
        UserError: it is on another scale, such as BLEU's from 0 to 100.
    """
    beyond = [value for value in (score.value, *(i.score for i in items)) if abs(value) > 1]
    if beyond or score.metric in _OF_A_HUNDRED:
        got = f", got {beyond[0]:g}" if beyond else ""
        rule = f"task {loaded.task.label}: its {score.metric} is no share of 1{got}"
        remedy = "name another `metric` of it; accuracies of all tasks are averaged"
        raise UserError([Fault(f"eval.{loaded.role}", rule, remedy)])
