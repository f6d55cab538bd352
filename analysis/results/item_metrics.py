"""Metrics that are means over items: of which tasks, what values they can have, how rounded."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainables.config import ROLES
from trainables.metric_keys import (
    FORGETTING_MAX,
    FORGETTING_MEAN,
    FORGETTING_NLL,
    FORGETTING_POSITIVE,
    IN_DOMAIN_ACC,
    METRICS,
    OOD_ACC,
    OOD_GAP,
    role_mean,
    task_forgetting,
    task_score,
)
from trainables.records.schema import TaskScore


def measured_on(metric: str, scores: Mapping[str, TaskScore]) -> tuple[list[str], bool]:
    """The tasks, possibly none, that a metric is the mean over, and whether it is forgetting."""
    of_role = {role: [t for t, s in scores.items() if s.role == role] for role in ROLES}
    if metric == FORGETTING_MEAN:
        return of_role["retention"], True
    for role, tasks in of_role.items():
        if metric == role_mean(role):
            return tasks, False
        for task in tasks:
            if metric == task_score(role, task, scores[task].metric):
                return [task], False
            if role == "retention" and metric == task_forgetting(task):
                return [task], True
    return [], False


def limits(metric: str, scores: Mapping[str, TaskScore]) -> tuple[float, float]:
    """The least and the greatest value that a metric can have, as far as that is known."""
    tasks, is_forgetting = measured_on(metric, scores)
    if is_forgetting or metric in (FORGETTING_MAX, OOD_GAP):
        return -1, 1
    if tasks or metric == FORGETTING_POSITIVE:
        return 0, 1
    known = METRICS.get(metric)
    # Losses, times, sizes and counts; a rise of a loss may be negative, and so may shares be.
    is_amount = known is not None and known.unit not in ("share", "1")
    return 0 if is_amount and metric != FORGETTING_NLL else -math.inf, math.inf


def rounding(metric: str, scores: Mapping[str, TaskScore]) -> float:
    """Standard deviation of what a metric is off by as its tasks count whole items; else 0.

    An accuracy on N items is what it would be on endless many such items, rounded to 1/N.
    """
    if metric == OOD_GAP:
        return math.hypot(rounding(IN_DOMAIN_ACC, scores), rounding(OOD_ACC, scores))
    of_retention = metric in (FORGETTING_MAX, FORGETTING_POSITIVE)
    tasks, _ = measured_on(FORGETTING_MEAN if of_retention else metric, scores)
    of_tasks = [1 / scores[task].items / math.sqrt(12) for task in tasks]
    if metric == FORGETTING_MAX:
        return max(of_tasks, default=0.0)
    return math.hypot(*of_tasks) / len(of_tasks) if of_tasks else 0.0
