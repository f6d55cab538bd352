"""Searches replayed on the recorded trainings of `grid.py`, in virtual time.

A trial is one of the trainings of the grid point nearest to what was suggested (in the logarithm
of the learning rate), so nothing counts that was not measured, and no search can find more than
the grid. What a search sees is a training with one seed, drawn for each trial; what it has found
is the hypervolume of the points that it trained to their end, at their means over the seeds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from benchmarks.grid import OBJECTIVES, REPORT_EVERY, Grid, Point, Training, sweep
from benchmarks.virtual_time import run_side_by_side

from analysis.stats.hypervolume import hypervolume
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import Measurement, TrialStatus

WORKERS = 8
ENOUGH = 0.95  # of the grid's hypervolume


class Search(Protocol):
    """Suggests trials, and is told what they measure."""

    def suggest(self, number: int) -> Point | None:
        """A point for the next trial."""

    def ending(self, number: int, measurement: Measurement) -> TrialStatus | None:
        """How a trial shall end after this measurement, which is not its last; None: not yet."""

    def ended(self, number: int, status: TrialStatus, last: Measurement) -> None:
        """How a trial has ended."""


class Table:
    """The grid, as the searches find it.

    Attributes:
        config: the sweep.
        points: of the grid.
        total_steps: of a training.
        steps: of the whole grid, each point trained once.
        hypervolume: of the whole grid, at means over seeds.
    """

    def __init__(self, grid: Grid) -> None:
        self.config = sweep()
        self._trainings: dict[Point, list[Training]] = {}
        for training in grid.trainings:
            self._trainings.setdefault(training.point, []).append(training)
        self.points = list(self._trainings)
        self.total_steps = max(max(training.curve) for training in grid.trainings)
        self.steps = self.total_steps * len(self.points)
        assert tuple(o.metric for o in self.config.objectives) == OBJECTIVES
        losses = {point: self._mean_losses(point) for point in self.points}
        self._losses = {point: loss for point, loss in losses.items() if loss is not None}
        # No better than the base at the domain and its shifts, and forgetting the most of all.
        forgetting = OBJECTIVES.index(FORGETTING_MEAN)
        self._reference = self._losses_of(grid.base)
        self._reference[forgetting] = max(loss[forgetting] for loss in self._losses.values())
        self.hypervolume = self.found(self.points)

    def found(self, points: Sequence[Point]) -> float:
        """Hypervolume of some of its points."""
        return hypervolume(
            [self._losses[point] for point in points if point in self._losses], self._reference
        )

    def nearest(self, suggested: Point) -> Point:
        """The point of the grid that stands for a suggestion."""
        kin = (suggested.method, suggested.rank, suggested.alpha_ratio)
        same = [p for p in self.points if (p.method, p.rank, p.alpha_ratio) == kin]
        return min(same, key=lambda p: abs(math.log(p.learning_rate / suggested.learning_rate)))

    def draw(self, point: Point, seed: int, number: int) -> Training:
        """The training that a trial turns out to be."""
        trainings = self._trainings[point]
        return trainings[np.random.default_rng([seed, number]).integers(len(trainings))]

    def _mean_losses(self, point: Point) -> list[float] | None:
        """Its objectives, all to be minimised, as means over seeds; None where one diverged."""
        ends = [training.curve.get(self.total_steps) for training in self._trainings[point]]
        losses = [self._losses_of(end) for end in ends if end is not None]
        return list(np.mean(losses, axis=0)) if len(losses) == len(ends) else None

    def _losses_of(self, metrics: dict[str, float]) -> list[float]:
        return [objective.loss(metrics[objective.metric]) for objective in self.config.objectives]


@dataclass(frozen=True)
class Run:
    """What a search had found (share of the grid's hypervolume) when it had spent so much.

    Attributes:
        spent: steps at which a trial came to its end that adds to what was found.
        shares: what was found then, rising.
        started: trials.
    """

    spent: list[int]
    shares: list[float]
    started: int

    def share_at(self, steps: float) -> float:
        """What was found by then."""
        return [0.0, *self.shares][bisect_right(self.spent, steps)]

    @property
    def enough_at(self) -> float:
        """Steps until `ENOUGH` was found; infinite where it was not."""
        return next(
            (at for at, s in zip(self.spent, self.shares, strict=True) if s >= ENOUGH), math.inf
        )


def run(
    table: Table,
    make_search: Callable[[Table, int], Search],
    seed: int,
    share_of_grid: float,
) -> Run:
    """One search with one seed, until it has spent a share of the grid's steps."""
    search = make_search(table, seed)
    ahead: dict[int, list[Measurement]] = {}
    trainings: dict[int, Training] = {}
    found: list[Point] = []
    spent, result = 0, Run([], [], 0)

    def start(number: int) -> bool:
        suggested = search.suggest(number)
        if suggested is None:
            return False
        trainings[number] = training = table.draw(table.nearest(suggested), seed, number)
        first, *ahead[number] = [
            Measurement(step=step, total_steps=table.total_steps, metrics=metrics, time=0)
            for step, metrics in training.curve.items()
        ]
        search.ending(number, first)
        return True

    def advance(number: int) -> tuple[int, bool]:
        nonlocal spent
        spent += REPORT_EVERY
        training, measurement = trainings[number], ahead[number].pop(0)
        is_last = not ahead[number]
        status = training.status if is_last else search.ending(number, measurement)
        if status is None:
            return REPORT_EVERY, False
        search.ended(number, status, measurement)
        if status is TrialStatus.COMPLETE:
            share = table.found([*found, training.point]) / table.hypervolume
            if share > (result.shares or [0.0])[-1]:
                found.append(training.point)
                result.spent.append(spent)
                result.shares.append(share)
        return REPORT_EVERY, True

    budget = round(share_of_grid * table.steps)
    started = run_side_by_side(WORKERS, budget, seed, start, advance)
    return Run(result.spent, result.shares, started)
