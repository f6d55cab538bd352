"""Each document's outcome, from the samples that lm-evaluation-harness logs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask

from trainables.data.right_answers import REMEDY, names_a_choice
from trainables.errors import Fault, UserError
from trainables.evaluation.task_loading import LoadedTask, document_note
from trainables.records.schema import ItemScore, TaskScore

# Metrics that take no choice: what the model would write, and a correlation.
_WITHOUT_GUESSING = ("exact_match", "mcc")


def samples(
    loaded: LoadedTask, result: dict[str, Any], metric: str, filter_name: str
) -> Iterator[tuple[str | None, Any, dict[str, Any]]]:
    """Each document's sample under one filter, with its task; see `ItemScore.member`.

    Of a group these are the tasks that give the metric: the harness averages over them.
    """
    has_members = metric in equally_weighted_metrics(loaded)
    for name, task in loaded.tasks["tasks"].items():
        for sample in result["samples"][name]:
            if sample["filter"] == filter_name and metric in sample["metrics"]:
                yield name if has_members else None, task, sample


def equally_weighted_metrics(loaded: LoadedTask) -> set[str]:
    """The metrics for which a group weighs its tasks equally, whatever their sizes."""
    group = loaded.tasks.get("groups", {}).get(loaded.task.task)
    aggregates = group.aggregate_metric_list if group else ()
    return {own.metric for own in aggregates if not own.weight_by_size}


def _count_choices(task: Any, sample: dict[str, Any]) -> int | None:
    """Number of listed answers; None if the answer is generated."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    # Mutual information also scores each answer without the question.
    twice = "acc_mutual_info" in sample["metrics"]
    return len(sample["arguments"]) // (2 if twice else 1)


def choices_per_answer(task: Any, sample: dict[str, Any], metric: str) -> float | None:
    """Number of listed answers over that of right ones; None if a guess is never right.

    A guess is never right where the task names no right answer or the metric takes no choice.
    """
    count = _count_choices(task, sample)
    if count is None or metric in _WITHOUT_GUESSING:
        return None
    target, right = _target(task, sample), 1
    if isinstance(target, list):  # which may be filled up with -100
        right = len({each for each in target if names_a_choice(each, range(count))})
    return count / right if right else None


def scores_itself(task: Any) -> bool:
    """Whether listed answers are scored by the task's own code, perhaps by no choice at all."""
    is_own = type(task).process_results is not ConfigurableTask.process_results
    return task.OUTPUT_TYPE == "multiple_choice" and (
        is_own or callable(task.config.process_results)
    )


def is_number(value: Any) -> bool:
    """Whether it is a number that counts as measured."""
    return isinstance(value, (int, float, np.number)) and not math.isnan(float(value))


def item_scores(loaded: LoadedTask, result: dict[str, Any], score: TaskScore) -> list[ItemScore]:
    """Each document's outcome.

    Raises:
        UserError: a retention task's metric exists only for the whole set, not per document.
    """
    items = [
        _item(loaded.task.label, member, task, sample, score.metric)
        for member, task, sample in samples(loaded, result, score.metric, score.filter)
        if is_number(sample[score.metric])
    ]
    if loaded.role == "retention" and not items:
        rule = (
            f"task {loaded.task.label}: its {score.metric} is of all documents, of none by itself"
        )
        raise UserError([Fault("eval.retention", rule, "name another `metric` of it")])
    return items


def find_without_answer(
    loaded: LoadedTask, result: dict[str, Any], score: TaskScore
) -> Iterator[str]:
    """A warning if right answers are no choices, as a few of BIG-bench Hard are.

    Raises:
        UserError: most are so, and the score says nothing.
    """
    scored = [
        (task, sample) for _, task, sample in samples(loaded, result, score.metric, score.filter)
    ]
    without = [(task, sample) for task, sample in scored if not _has_right_choice(task, sample)]
    if not without:
        return
    task, sample = without[0]
    rule = (
        f"task {loaded.task.label}: the right answer of {len(without)} of {len(scored)} documents "
        f"is none of their choices, such as {_target(task, sample)!r} of "
        f"{document_note(sample['doc_id'], sample['doc'])}"
    )
    if 2 * len(without) > len(scored):
        raise UserError([Fault(f"eval.{loaded.role}", rule, REMEDY)])
    yield f"{rule}; they count as wrong"


def _has_right_choice(task: Any, sample: dict[str, Any]) -> bool:
    count = _count_choices(task, sample)
    if count is None or scores_itself(task):
        return True
    target = _target(task, sample)
    by_text = isinstance(target, str)
    return names_a_choice(target, task.doc_to_choice(sample["doc"]) if by_text else range(count))


def _item(
    label: str, member: str | None, task: Any, sample: dict[str, Any], metric: str
) -> ItemScore:
    try:
        return ItemScore(
            task=label,
            doc_hash=sample["doc_hash"],
            filter=sample["filter"],
            score=float(sample[metric]),
            prompt=str(sample["arguments"][0][0]),
            target=_target_text(task, sample),
            answer=answer_text(task, sample, metric),
            member=member,
        )
    except Exception as error:
        error.add_note(document_note(sample["doc_id"], sample["doc"]))
        raise


def _target_text(task: Any, sample: dict[str, Any]) -> str:
    target, count = _target(task, sample), _count_choices(task, sample)
    if count is None or not isinstance(target, int):
        return str(target)
    if target >= count and not scores_itself(task):
        raise IndexError(f"its right answer is choice {target} of 0 to {count - 1}")
    return _choice_text(task, sample, target) if 0 <= target < count else str(target)


def _target(task: Any, sample: dict[str, Any]) -> Any:
    return task.doc_to_text(sample["doc"]) if _varies_in_input(task) else sample["target"]


def answer_text(task: Any, sample: dict[str, Any], metric: str) -> str:
    """What the model answered: a choice, or the text that it generated."""
    count = _count_choices(task, sample)
    if count is None:
        return str(sample["filtered_resps"][0])
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    by_metric = likelihoods[:count]
    if metric == "acc_mutual_info":
        by_metric = [own - alone for own, alone in zip(by_metric, likelihoods[count:], strict=True)]
    elif metric in ("acc_norm", "acc_bytes"):
        choices = task.doc_to_choice(sample["doc"])
        lengths = [len(c.encode() if metric == "acc_bytes" else c) for c in choices]
        # An empty choice is never taken: the harness divides by 0 as NumPy does.
        by_metric = [
            own / length if length else -math.inf
            for own, length in zip(by_metric, lengths, strict=True)
        ]
    # Same choice as the harness if all are numbers, without an array per item.
    return _choice_text(task, sample, max(range(count), key=by_metric.__getitem__))


def _choice_text(task: Any, sample: dict[str, Any], choice: int) -> str:
    if _varies_in_input(task):
        return str(task.doc_to_choice(sample["doc"])[choice]).strip()
    return str(sample["arguments"][choice][1]).strip()


def _varies_in_input(task: Any) -> bool:
    """Whether choices differ in what precedes one common continuation, as in Winogrande."""
    return task.OUTPUT_TYPE == "multiple_choice" and bool(getattr(task, "multiple_input", 0))
