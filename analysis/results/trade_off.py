"""How trade-offs are compared: each objective on the scale of a sweep's own trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from analysis.results.pareto import Goals, can_be_taken, is_feasible, objective_losses, pareto_front
from trainables.config import ROLES
from trainables.metric_keys import (
    FORGETTING_MAX,
    FORGETTING_MEAN,
    FORGETTING_POSITIVE,
    OOD_GAP,
    role_mean,
    task_flips,
    task_forgetting,
)
from trainables.records.schema import TrialRecord

# Standard errors of an objective that count as much as all of the front: fewer are no difference.
_FEWEST_ERRORS = 2.0
_ERROR = "_stderr"
_ROLE_OF = {role_mean(role): role for role in ROLES}


def scaling_trials(goals: Goals, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials over which objectives are scaled: the front, which no bad trial can stretch.

    In a front of two different points, each is best in one objective and worst in the other, so
    they would tie: then all trials that may be taken are used. Empty if none keeps the constraints.
    """
    front = pareto_front(goals, records)
    points = {tuple(objective_losses(goals, record)) for record in front}
    if len(points) > 2:
        return front
    return [record for record in records if can_be_taken(goals, record)]


def objective_ranges(goals: Goals, records: Sequence[TrialRecord]) -> list[tuple[float, float]]:
    """The best and the worst loss of each objective over some complete trials.

    The worst is at least two standard errors off, where these are known: else a single item could
    count as much as all that is gained in another objective.
    """
    ranges = []
    for objective in goals.objectives:
        values = [value for r in records if (value := r.metric(objective.metric)) is not None]
        losses = [objective.loss(value) for value in values]
        error = max(standard_error(objective.metric, record.metrics) for record in records)
        ranges.append((min(losses), max(*losses, min(losses) + _FEWEST_ERRORS * error)))
    return ranges


def trade_off_ranges(goals: Goals, complete: Sequence[TrialRecord]) -> list[tuple[float, float]]:
    """The ranges by which trade-offs are compared, over complete trials of which there are some."""
    return objective_ranges(goals, scaling_trials(goals, complete) or complete)


def standard_error(metric: str, metrics: Mapping[str, float]) -> float:
    """That of an accuracy, of forgetting or of the gap, of one task or over several; 0 if unknown.

    The worst task's forgetting counts as that of the least certain one; the mean of the positive
    parts as the mean, than which it varies no more.
    """
    if role := _ROLE_OF.get(metric):
        return _mean_error(_errors(metrics, role).values())
    if metric == OOD_GAP:  # between scores on other questions, so they vary by themselves
        roles = (_errors(metrics, role) for role in ("in_domain", "ood"))
        return math.hypot(*(_mean_error(errors.values()) for errors in roles))
    if not metric.startswith(task_forgetting("")):
        return metrics.get(f"{metric}{_ERROR}", 0.0)
    lost = {
        task_forgetting(_task_name(score)): error * _share_of_error(metrics, score)
        for score, error in _errors(metrics, "retention").items()
    }
    if metric == FORGETTING_MAX:
        return max(lost.values(), default=0.0)
    if metric in (FORGETTING_MEAN, FORGETTING_POSITIVE):
        return _mean_error(lost.values())
    return lost.get(metric, 0.0)


def _errors(metrics: Mapping[str, float], role: str) -> dict[str, float]:
    """The standard errors of a role's scores, by the score's key."""
    return {
        key.removesuffix(_ERROR): error
        for key, error in metrics.items()
        if key.endswith(_ERROR) and key.startswith(f"{role}/")
    }


def _mean_error(errors: Iterable[float]) -> float:
    """The standard error of a mean over tasks."""
    of_tasks = list(errors)
    return math.hypot(*of_tasks) / len(of_tasks) if of_tasks else 0.0


def _task_name(score: str) -> str:
    return score.partition("/")[2].rpartition("/")[0]


def _share_of_error(metrics: Mapping[str, float], key: str) -> float:
    """The standard error of a task's difference from the base, as a share of its score's own.

    The base answers the same items, of which few may differ: where a share f is forgotten, g gained
    and p right, it is sqrt((f + g - (f - g)^2) / (p (1 - p))). 1 where flips are not known, or
    items are graded: then f - g is not what was lost.
    """
    task, score = _task_name(key), metrics.get(key)
    forgotten = metrics.get(task_flips(task, "forgotten"))
    gained = metrics.get(task_flips(task, "gained"))
    if score is None or forgotten is None or gained is None or not 0 < score < 1:
        return 1.0
    lost = forgotten - gained
    if not math.isclose(metrics.get(task_forgetting(task), lost), lost, abs_tol=1e-9):
        return 1.0
    return math.sqrt((forgotten + gained - lost**2) / (score * (1 - score)))


def distance_to_ideal(
    goals: Goals, record: TrialRecord, ranges: Sequence[tuple[float, float]]
) -> float:
    """Distance to the best of every objective, each scaled to [0, 1] from best to worst.

    Where all trials have the same value of an objective, it is not scaled.
    """
    scaled = []
    for objective, (best, worst) in zip(goals.objectives, ranges, strict=True):
        own = objective.loss(record.metric(objective.metric) or 0.0)
        scaled.append((own - best) / ((worst - best) or 1.0))
    # Round so that values that differ only by the order of float operations tie.
    return round(math.hypot(*scaled), 9)


def best_trade_off(
    goals: Goals, trials: Sequence[TrialRecord], ranges: Sequence[tuple[float, float]]
) -> TrialRecord:
    """The trial nearest to the ideal, among those within the constraints if there are any.

    There is at least one trial, and all are complete, with every objective. The ranges are those of
    `objective_ranges`.
    """
    taken = [record for record in trials if is_feasible(goals, record)] or trials
    # Those that break a constraint may be better than the best of the ranges.
    reached = objective_ranges(goals, taken)
    wider = [
        (min(best, own), worst) for (best, worst), (own, _) in zip(ranges, reached, strict=True)
    ]
    return min(taken, key=lambda record: (distance_to_ideal(goals, record, wider), record.number))
