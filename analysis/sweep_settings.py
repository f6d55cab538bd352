"""What the commands need of a sweep's file, from the record that the sweep keeps of it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from trainables.config import Objective
from trainables.results.pareto import Constraint
from trainables.results.records import SweepRecord


class _Part(BaseModel):
    """A section of which some keys are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Budget(_Part):
    """How much the sweep may do."""

    trials: int
    hours: float | None = None


class Confirm(_Part):
    """How often winners are repeated after the search."""

    top_k: int
    seeds: int


class Wandb(_Part):
    """Where the sweep was logged; absent values are W&B's own defaults."""

    mode: Literal["online", "offline", "disabled"] | None = None
    project: str
    entity: str | None = None


class SweepSettings(_Part):
    """The sweep's file as it was resolved; also what the sweep is after (`pareto.Goals`)."""

    name: str
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    sampler: str = "tpe"
    search: dict[str, dict[str, object] | None] = Field(default_factory=dict)
    budget: Budget
    confirm: Confirm | None = None
    wandb: Wandb

    @classmethod
    def of(cls, sweep: SweepRecord) -> SweepSettings:
        """Of a sweep's record."""
        return cls.model_validate(sweep.config)

    @property
    def planned_trials(self) -> int:
        """Trials of the search: of a grid no more than it has points."""
        if self.sampler != "grid":
            return self.budget.trials
        points = sum(map(_points, self.search.values()))
        return min(self.budget.trials, points or self.budget.trials)

    @property
    def planned_repeats(self) -> int:
        """Trials that repeat the winners, if there are as many."""
        return self.confirm.top_k * self.confirm.seeds if self.confirm else 0


def _points(space: dict[str, object] | None) -> int:
    """Of a method's grid, in which every axis that is searched is a list."""
    if space is None:
        return 0
    return math.prod(len(axis) for axis in space.values() if isinstance(axis, list | tuple))
