"""The trade-off of a sweep: objectives, constraints, the Pareto front, and the trial to take.

The sweep's last words and the report about it both ask here, so they never disagree.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from trainables.config import Frozen, Objective
from trainables.records import TrialRecord, TrialStatus
from trainables.wording import metric_text

_MOST_NUMBERS = 10
Names = Callable[[Sequence[TrialRecord]], str]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_CONSTRAINT = re.compile(r"\s*([^\s<>=]+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


class Constraint(Frozen):
    """A bound on a logged metric; in the sweep file written `forgetting/mean <= 0.05`."""

    metric: str
    operator: Literal["<=", "<", ">=", ">"]
    bound: float = Field(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _CONSTRAINT.fullmatch(value)
        if match is None:
            raise ValueError(f"must read `metric <= number` (or <, >=, >), got {value!r}")
        metric, symbol, bound = match.groups()
        return {"metric": metric, "operator": symbol, "bound": bound}

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether the value is within the bound."""
        return _OPERATORS[self.operator](value, self.bound)

    def violation(self, value: float) -> float:
        """How far beyond the bound, in the metric's unit; <= 0 where it holds."""
        if self.holds(value):
            return min(0.0, -abs(value - self.bound))
        return max(abs(value - self.bound), 1e-12)


class Goals(Protocol):
    """What a sweep is after; the sweep's configuration is one."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """At least one."""

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """Possibly none."""


@dataclass(frozen=True)
class Recommendation:
    """The trial to take, and why, in one sentence.

    Attributes:
        trial: always a complete one.
        reason: derived from the records.
        feasible: whether it keeps every constraint.
    """

    trial: TrialRecord
    reason: str
    feasible: bool = True


def pareto_front(goals: Goals, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Complete trials within all constraints that no other dominates, by number.

    A trial that lacks an objective or a constrained metric is not on it, and neither is one that
    repeats another with a new seed.
    """
    candidates = [
        (_losses(goals, values), record)
        for record in records
        if (values := objective_values(goals, record)) is not None and is_feasible(goals, record)
    ]
    front: list[tuple[list[float], TrialRecord]] = []
    # In this order whatever dominates a trial comes before it, so the front so far decides.
    for own, record in sorted(candidates, key=lambda candidate: candidate[0]):
        if not any(_dominates(other, own) for other, _ in front):
            front.append((own, record))
    return sorted((record for _, record in front), key=lambda record: record.number)


def _losses(goals: Goals, values: list[float]) -> list[float]:
    return [
        objective.loss(value) for objective, value in zip(goals.objectives, values, strict=True)
    ]


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def recommend(
    goals: Goals,
    records: Sequence[TrialRecord],
    judged: Sequence[TrialRecord] = (),
    names: Names | None = None,
) -> Recommendation | None:
    """The trial to take; None where no complete trial has every objective.

    With one objective the best; with several the knee of the Pareto front, the trial nearest to
    the best of every objective after scaling each to [0, 1] over the front. Where no trial keeps
    the constraints, the one that misses them by the least in total. The lower number wins a tie.

    Args:
        goals: of the sweep.
        records: its trials.
        judged: those that were repeated with other seeds, as `repeats.judged_by_repeats` has them.
            Where there are any it is one of them, and not one that was best by luck.
        names: writes trials down in the reason; by their numbers where it is not given.
    """
    names = names or numbers_text
    by_search, by_repeats = (_choose(goals, found, names) for found in (records, judged))
    if by_search is None or by_repeats is None:
        return by_search
    trial_id = by_repeats.trial.config.trial_id
    trial = next(record for record in records if record.config.trial_id == trial_id)
    reason = f"by the means over repeats with other seeds, {by_repeats.reason}"
    if trial is not by_search.trial:
        reason += f" One run of each would have chosen {names([by_search.trial])}."
    return Recommendation(trial, reason, by_repeats.feasible)


def _choose(goals: Goals, records: Sequence[TrialRecord], names: Names) -> Recommendation | None:
    ranked = [record for record in records if objective_values(goals, record) is not None]
    if not ranked:
        return None
    front = pareto_front(goals, ranked)
    if not front:
        return _least_infeasible(goals, ranked)
    if len(goals.objectives) == 1:
        return _best(goals, front, ranked, names)
    return _knee(goals, front, ranked, names)


def objective_values(goals: Goals, record: TrialRecord) -> list[float] | None:
    """Values of the objectives in their order; None for a trial that cannot be taken.

    It can where it is complete, has every objective, and repeats no other trial with a new seed.
    """
    if record.status is not TrialStatus.COMPLETE or record.confirms is not None:
        return None
    values = [record.metric(objective.metric) for objective in goals.objectives]
    found = [value for value in values if value is not None and math.isfinite(value)]
    return found if len(found) == len(values) else None


def is_feasible(goals: Goals, record: TrialRecord) -> bool:
    """Whether a trial keeps every constraint."""
    return all(_violation(c, record) <= 0 for c in goals.constraints)


def _violation(constraint: Constraint, record: TrialRecord) -> float:
    value = record.metric(constraint.metric)
    return math.inf if value is None or math.isnan(value) else constraint.violation(value)


def _least_infeasible(goals: Goals, ranked: list[TrialRecord]) -> Recommendation:
    def total(record: TrialRecord) -> float:
        return sum(max(_violation(c, record), 0.0) for c in goals.constraints)

    trial = min(ranked, key=lambda record: (total(record), record.number))
    broken = [
        f"{c.metric} is {_exactly(trial.metric(c.metric))}, not {c.operator} {c.bound:g}"
        for c in goals.constraints
        if _violation(c, trial) > 0
    ]
    reason = (
        f"no trial keeps every constraint, and of {_trials(len(ranked))} this one misses them by "
        f"the least: {' and '.join(broken)}."
    )
    return Recommendation(trial, reason, feasible=False)


def _exactly(value: float | None) -> str:
    """Finer than elsewhere: 0.0502 is not <= 0.05, but 0.050 would seem to be."""
    return "missing" if value is None else f"{value:.4g}"


def _best(
    goals: Goals, front: list[TrialRecord], ranked: list[TrialRecord], names: Names
) -> Recommendation:
    objective = goals.objectives[0]
    value = metric_text(objective.metric, front[0].metric(objective.metric))
    extreme = "lowest" if objective.mode == "min" else "highest"
    kept = " that keep every constraint" if goals.constraints else ""
    reason = f"{extreme} {objective.metric} ({value}) of {_trials(_feasible(goals, ranked))}{kept}"
    return Recommendation(front[0], f"{reason}{_as_good(front[1:], names)}.")


def _knee(
    goals: Goals, front: list[TrialRecord], ranked: list[TrialRecord], names: Names
) -> Recommendation:
    ranges = objective_ranges(goals, front)
    distances = [distance_to_ideal(goals, record, ranges) for record in front]
    nearest = [r for r, d in zip(front, distances, strict=True) if d == min(distances)]
    trial, *others = nearest
    told = ", ".join(
        f"{o.metric} {metric_text(o.metric, trial.metric(o.metric))}" for o in goals.objectives
    )
    if len(front) == 1:
        count = _trials(_feasible(goals, ranked))
        return Recommendation(trial, f"best in every objective of {count}: {told}.")
    reason = (
        f"the knee of the front's {len(front)} trials, nearest to the best of every objective at "
        f"once: {told}"
    )
    return Recommendation(trial, f"{reason}{_as_good(others, names)}.")


def objective_ranges(goals: Goals, records: Sequence[TrialRecord]) -> list[tuple[float, float]]:
    """The best and the worst value of each objective over some complete trials."""
    ranges = []
    for objective in goals.objectives:
        values = [value for r in records if (value := r.metric(objective.metric)) is not None]
        low, high = min(values), max(values)
        ranges.append((low, high) if objective.mode == "min" else (high, low))
    return ranges


def distance_to_ideal(
    goals: Goals, record: TrialRecord, ranges: Sequence[tuple[float, float]]
) -> float:
    """Distance to the best of every objective, each scaled to [0, 1] from its best to its worst."""
    scaled = []
    for objective, (best, worst) in zip(goals.objectives, ranges, strict=True):
        own = record.metric(objective.metric) or 0.0
        scaled.append((own - best) / (worst - best) if worst != best else 0.0)
    # Rounding makes ties of what differs by nothing but the order of float operations.
    return round(math.hypot(*scaled), 9)


def _feasible(goals: Goals, ranked: list[TrialRecord]) -> int:
    return sum(is_feasible(goals, record) for record in ranked)


def _trials(count: int) -> str:
    return "1 complete trial" if count == 1 else f"{count} complete trials"


def _as_good(others: list[TrialRecord], names: Names) -> str:
    return f" (as good: {names(others)})" if others else ""


def numbers_text(records: Sequence[TrialRecord]) -> str:
    """Such as `trials 3, 5 and 12 more`."""
    numbers = ", ".join(str(record.number) for record in records[:_MOST_NUMBERS])
    more = len(records) - _MOST_NUMBERS
    told = f"trial{'s' if len(records) > 1 else ''} {numbers}"
    return f"{told} and {more} more" if more > 0 else told
