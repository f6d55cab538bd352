"""The goals of a sweep, and the Pareto front of its trials."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import le
from typing import Protocol

from trainables.config import ConfirmConfig, Constraint, Objective
from trainables.records.schema import TrialRecord, TrialStatus, points_of


class Goals(Protocol):
    """What a sweep aims for; its configuration implements this."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """At least one."""

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """Possibly none."""

    @property
    def confirm(self) -> ConfirmConfig | None:
        """None if nothing is repeated."""


def pareto_front(goals: Goals, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Points of complete trials within all constraints that no other dominates, by number.

    Left out are those that lack an objective or a constrained metric, and repeat runs with a new
    seed.
    """
    candidates = [
        (losses, record)
        for record in points_of(records)
        if (losses := objective_losses(goals, record)) and is_feasible(goals, record)
    ]
    front: list[tuple[list[float], TrialRecord]] = []
    # In this order a trial comes after all that dominate it, so the front so far decides.
    for own, record in sorted(candidates, key=lambda candidate: candidate[0]):
        if not any(other != own and is_no_worse(other, own) for other, _ in front):
            front.append((own, record))
    return sorted((record for _, record in front), key=lambda each: (each.number, each.strength))


def objective_losses(goals: Goals, record: TrialRecord) -> list[float]:
    """The losses of all objectives, in order: lower is better; none of a trial that lacks one."""
    values = objective_values(goals, record) or []
    return [aim.loss(value) for aim, value in zip(goals.objectives, values, strict=False)]


def is_no_worse(one: list[float], other: list[float]) -> bool:
    """Whether these losses are nowhere above the others."""
    return all(map(le, one, other))


def objective_values(goals: Goals, record: TrialRecord) -> list[float] | None:
    """Values of the objectives, in order; None for a trial that has no part in the trade-off.

    It must be complete, have every objective, and not be a repeat run with a new seed.
    """
    if record.status is not TrialStatus.COMPLETE or record.confirms is not None:
        return None
    values = [record.metric(objective.metric) for objective in goals.objectives]
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else None


def measured_points(goals: Goals, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """All points of complete trials that have every objective."""
    return [point for point in points_of(records) if objective_values(goals, point) is not None]


def can_be_taken(goals: Goals, record: TrialRecord) -> bool:
    """Whether a trial is complete, has every objective, and meets every constraint."""
    return objective_values(goals, record) is not None and is_feasible(goals, record)


def is_feasible(goals: Goals, record: TrialRecord) -> bool:
    """Whether a trial meets every constraint."""
    return all(violation(c, record) <= 0 for c in goals.constraints)


def violation(constraint: Constraint, record: TrialRecord) -> float:
    """How far a trial is beyond a bound, in the metric's unit; infinite if the metric is absent."""
    value = record.metric(constraint.metric)
    return math.inf if value is None else constraint.violation(value)
