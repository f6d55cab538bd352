"""What the commands need of a sweep's file, from the record that the sweep keeps of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainables.config import Objective
from trainables.pareto import Constraint
from trainables.records import SweepRecord


class _Part(BaseModel):
    """A section of which some keys are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Budget(_Part):
    """How much the sweep may do."""

    trials: int


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
    budget: Budget
    confirm: Confirm | None = None
    wandb: Wandb

    @classmethod
    def of(cls, sweep: SweepRecord) -> SweepSettings:
        """Of a sweep's record."""
        return cls.model_validate(sweep.config)
