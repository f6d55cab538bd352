"""Forgetting: what the base could do and the tuned model cannot.

Positive numbers mean that it forgot. Pure arithmetic over scores and items; no model involved.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from trainables import metric_keys
from trainables.records.item_records import pair_items
from trainables.records.schema import ItemScore, TaskScore


def forgetting_metrics(
    base: Mapping[str, TaskScore],
    tuned: Mapping[str, TaskScore],
    base_items: Sequence[ItemScore],
    tuned_items: Sequence[ItemScore],
) -> dict[str, float]:
    """Every `forgetting/*`, `flips/*` and `retention/*ratio*` metric of one evaluation.

    F_t = a_base,t - a_tuned,t for each retention task t (complement of 2405.09673); the mean, the
    maximum and the mean of positive parts are our own aggregates, and so is the mean of the
    retention ratios, over the tasks on which the base is not at chance. Empty without retention
    tasks.

    Raises:
        ValueError: the two evaluations differ in their items or in their metric.
    """
    tasks = [label for label, score in base.items() if score.role == "retention"]
    if not tasks:
        return {}
    # Items of other tasks may have no partner: a task may score only what it can read.
    kept = ([item for item in of if item.task in tasks] for of in (base_items, tuned_items))
    flips = count_flips(*kept)
    metrics: dict[str, float] = {}
    for task in tasks:
        metrics |= _task_metrics(task, base[task], tuned[task], *flips[task])
    losses = [metrics[metric_keys.task_forgetting(task)] for task in tasks]
    metrics[metric_keys.FORGETTING_MEAN] = fmean(losses)
    metrics[metric_keys.FORGETTING_MAX] = max(losses)
    metrics[metric_keys.FORGETTING_POSITIVE] = fmean(max(loss, 0.0) for loss in losses)
    keys = {task: metric_keys.task_retention_ratio(task) for task in tasks}
    ratios = {task: metrics[key] for task, key in keys.items() if key in metrics}
    if ratios:
        # At chance they are noise over noise, of any size.
        above = [ratio for task, ratio in ratios.items() if not is_at_chance(base[task])]
        metrics[metric_keys.RETENTION_RATIO] = fmean(above or ratios.values())
    return metrics


def _task_metrics(
    task: str, base: TaskScore, tuned: TaskScore, forgotten: float, gained: float
) -> dict[str, float]:
    """One retention task's metrics; `forgotten` and `gained` are its flips."""
    if _measure(base) != _measure(tuned):
        raise ValueError(
            f"task {task}: the base was scored by {_measure(base)}, the tuned model by "
            f"{_measure(tuned)}"
        )
    metrics = {
        metric_keys.task_forgetting(task): base.value - tuned.value,
        metric_keys.task_flips(task, "forgotten"): forgotten,
        metric_keys.task_flips(task, "gained"): gained,
    }
    if base.choices is not None and base.choices > 1:
        adjusted = chance_adjusted(forgotten, base.value, tuned.value, base.choices)
        metrics[metric_keys.task_forgetting_adjusted(task)] = adjusted
    ratio = retention_ratio(base.value, tuned.value, base.chance)
    if ratio is not None:
        metrics[metric_keys.task_retention_ratio(task)] = ratio
    return metrics


def is_at_chance(score: TaskScore) -> bool:
    """Whether a score is within two standard errors of chance, or below; False if it is unknown."""
    return score.chance is not None and score.value - 2 * (score.stderr or 0.0) <= score.chance


def _measure(score: TaskScore) -> str:
    return f"{score.metric} (filter {score.filter})"


def retention_ratio(base: float, tuned: float, chance: float | None) -> float | None:
    """(a_tuned - c) / (a_base - c), dimensionless, >= 0; None where a_base <= c or c is unknown.

    Clipped at 0: below chance there is nothing left to keep.
    """
    if chance is None or base <= chance:
        return None
    return max((tuned - chance) / (base - chance), 0.0)


def count_flips(
    base_items: Sequence[ItemScore], tuned_items: Sequence[ItemScore]
) -> dict[str, tuple[float, float]]:
    """Shares of items that went right -> wrong and wrong -> right, per task (2510.17776).

    Items count as right above a score of 0.5. Where no grade is between right and wrong, the
    difference of the shares is exactly the task's forgetting.

    Raises:
        ValueError: an item has no counterpart.
    """
    paired = pair_items(base_items, tuned_items)
    after = Counter(item.task for item in tuned_items)
    flips: dict[str, tuple[float, float]] = {}
    for task, before in Counter(item.task for item in base_items).items():
        pairs = paired.get(task, [])
        if without := before + after[task] - 2 * len(pairs):
            raise ValueError(
                f"task {task}: base and tuned were evaluated on different items "
                f"({without} without a partner)"
            )
        forgotten = mean_over_members((p.base.member, float(p.is_forgotten)) for p in pairs)
        gained = mean_over_members((p.base.member, float(p.is_gained)) for p in pairs)
        flips[task] = forgotten, gained
    return flips


def mean_over_members(values: Iterable[tuple[str | None, float]]) -> float:
    """Mean over a task's members of the means of their values, given as (member, value)."""
    by_member: dict[str | None, list[float]] = defaultdict(list)
    for member, value in values:
        by_member[member].append(value)
    return fmean(map(fmean, by_member.values()))


def effective_choices(choices: Sequence[tuple[str | None, float]]) -> float:
    """The k of `chance_adjusted` for items with other numbers of choices, given as (member, k).

    A guess is wrong with probability w = 1 - 1/k, and two independent ones go from right to wrong
    with w / k. Of this k, (mean w)^2 / (k - 1) is the mean of w / k, so that guessing is adjusted
    to 0: a mean of unequal k leaves some, as few choices make most of the flips (own).
    """
    wrong = mean_over_members((member, 1 - 1 / k) for member, k in choices)
    flips = mean_over_members((member, (1 - 1 / k) / k) for member, k in choices)
    # Rounded, so that equal numbers are returned as they are.
    return round(1 + wrong**2 / flips, 9) if flips else 1.0


def chance_adjusted(forgotten: float, base: float, tuned: float, choices: float) -> float:
    """Forgetting beyond what guessing explains, in [0, 1] (2510.17776).

        max(f - (1 - a_base)(1 - a_tuned) / (k - 1), 0)

    Args:
        forgotten: share of items that went right -> wrong.
        base: accuracy of the base.
        tuned: accuracy of the tuned model.
        choices: k, number of answers to choose from per right one, > 1; see `effective_choices`.
    """
    return max(forgotten - (1 - base) * (1 - tuned) / (choices - 1), 0.0)
