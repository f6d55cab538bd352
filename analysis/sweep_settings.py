"""The parts of a sweep's file that the commands need, read from the sweep's record of it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from analysis.results.formatting import one_line
from trainables.config import ConfirmConfig, Constraint, Objective
from trainables.records.sweep_record import SweepRecord


class _Part(BaseModel):
    """A section of which only some keys are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Budget(_Part):
    """How much the sweep may do."""

    trials: int
    hours: float | None = None
    gpu_hours: float | None = None


class Train(_Part):
    """What is kept of a trial."""

    save_weights: bool = True


class Wandb(_Part):
    """Where the sweep was logged; absent values are W&B's own defaults."""

    mode: Literal["online", "offline", "disabled"] | None = None
    project: str
    entity: str | None = None


class SweepSettings(_Part):
    """The resolved sweep file; also the sweep's goals (`pareto.Goals`)."""

    name: Annotated[str, AfterValidator(one_line)]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    sampler: str = "tpe"
    search: dict[str, object] = Field(default_factory=dict)
    train: Train = Train()
    budget: Budget
    confirm: ConfirmConfig | None = None
    wandb: Wandb

    @classmethod
    def of(cls, sweep: SweepRecord) -> SweepSettings:
        """Read the settings from a sweep's record."""
        return cls.model_validate(sweep.config)

    @property
    def planned_trials(self) -> int:
        """Number of trials in the search; for a grid, at most its number of points."""
        if self.sampler != "grid":
            return self.budget.trials
        points = sum(map(_points, self.search.values()))
        return min(self.budget.trials, points or self.budget.trials)


def _points(space: object) -> int:
    """Number of points in a method's grid, in which every searched axis is a list."""
    if not isinstance(space, dict):  # of a method that is not searched, or `first`
        return 0
    return math.prod(len(axis) for axis in space.values() if isinstance(axis, list | tuple))
