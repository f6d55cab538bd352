"""Searches replayed on the recorded trainings of `grid.py`, in virtual time.

A trial is one of the trainings of the grid point nearest to what was suggested (in the logarithm
of the learning rate), so nothing counts that was not measured, and no search can find more than
the grid. What a search sees is a training with one seed, drawn for each trial; what it has found
is the hypervolume of the points that it trained to their end, at their means over the seeds. Where
a trial's strengths are evaluated, each counts as found with it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
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

    def ended(
        self,
        number: int,
        status: TrialStatus,
        last: Measurement,
        strengths: Sequence[Measurement],
    ) -> None:
        """How a trial has ended, and what its model is at other strengths."""


Model = tuple[Point, float]  # a point of the grid, at a strength


class Table:
    """The grid, as the searches find it.

    Attributes:
        config: the sweep.
        points: of the grid.
        total_steps: of a training.
        strengths: that a trained model was evaluated at.
        steps: of the whole grid, each point trained once.
        hypervolume: of the whole grid at strength 1, at means over seeds.
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
        self._losses = {
            (point, strength): losses
            for point in self.points
            for strength, losses in self._mean_losses(point).items()
        }
        self.strengths = sorted({strength for _, strength in self._losses})
        # No better than the base at the domain and its shifts, and forgetting the most of all.
        forgetting = OBJECTIVES.index(FORGETTING_MEAN)
        self._reference = self._losses_of(grid.base)
        trained = [(point, 1.0) for point in self.points]
        self._reference[forgetting] = max(
            self._losses[model][forgetting] for model in trained if model in self._losses
        )
        self.hypervolume = self.found(trained)

    def found(self, models: Sequence[Model]) -> float:
        """Hypervolume of some of its models."""
        return hypervolume(
            [self._losses[model] for model in models if model in self._losses], self._reference
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

    def _mean_losses(self, point: Point) -> dict[float, list[float]]:
        """By strength, the objectives to be minimised as means over seeds; none if one diverged."""
        trainings = self._trainings[point]
        if any(self.total_steps not in training.curve for training in trainings):
            return {}
        ends = [{1.0: each.curve[self.total_steps], **each.strengths} for each in trainings]
        return {
            strength: list(np.mean([self._losses_of(end[strength]) for end in ends], axis=0))
            for strength in ends[0]
        }

    def _losses_of(self, metrics: dict[str, float]) -> list[float]:
        return [objective.loss(metrics[objective.metric]) for objective in self.config.objectives]


@dataclass(frozen=True)
class Work:
    """What trials cost until some moment: how many began, their steps and evaluations by method."""

    trials: int
    steps: dict[str, int]
    evaluations: int


@dataclass(frozen=True)
class Run:
    """What a search had found (share of the grid's hypervolume) when it had spent so much.

    Attributes:
        spent: steps at which a trial came to its end that adds to what was found.
        shares: what was found then, rising.
        work: what trials had cost by then.
        by_trials: what was found when so many trials had ended, from one on.
        started: trials.
    """

    spent: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    by_trials: list[float] = field(default_factory=list)
    started: int = 0

    def share_at(self, steps: float) -> float:
        """What was found by then."""
        return [0.0, *self.shares][bisect_right(self.spent, steps)]

    @property
    def enough_at(self) -> float:
        """Steps until `ENOUGH` was found; infinite where it was not."""
        return next((at for at, s in zip(self.spent, self.shares, strict=True) if s >= ENOUGH), inf)

    @property
    def enough_work(self) -> Work | None:
        """What trials had cost when `ENOUGH` was found; None where it was not."""
        return next((w for w, s in zip(self.work, self.shares, strict=True) if s >= ENOUGH), None)


def run(
    table: Table,
    make_search: Callable[[Table, int], Search],
    seed: int,
    share_of_grid: float,
    *,
    workers: int = WORKERS,
    report_every: int = REPORT_EVERY,
    with_strengths: bool = False,
) -> Run:
    """One search with one seed, until it has spent a share of the grid's steps.

    Trials report, and are evaluated, every `report_every` steps.
    """
    search = make_search(table, seed)
    ahead: dict[int, list[Measurement]] = {}
    trainings: dict[int, Training] = {}
    found: list[Model] = []
    spent, result = Counter[str](), Run()

    def measured(step: int, metrics: dict[str, float], strength: float = 1.0) -> Measurement:
        total = table.total_steps
        return Measurement(step=step, total_steps=total, strength=strength, metrics=metrics, time=0)

    def start(number: int) -> bool:
        suggested = search.suggest(number)
        if suggested is None:
            return False
        trainings[number] = training = table.draw(table.nearest(suggested), seed, number)
        (first, metrics), *later = training.curve.items()
        last = max(training.curve)
        ahead[number] = [
            measured(*each) for each in later if each[0] % report_every == 0 or each[0] == last
        ]
        search.ending(number, measured(first, metrics))
        spent["trials"] += 1
        return True

    def advance(number: int) -> tuple[int, bool]:
        training, measurement = trainings[number], ahead[number].pop(0)
        spent[training.point.method] += report_every
        spent["evaluations"] += 1
        is_last = not ahead[number]
        status = training.status if is_last else search.ending(number, measurement)
        if status is None:
            return report_every, False
        has_strengths = with_strengths and status is TrialStatus.COMPLETE
        scaled = training.strengths if has_strengths else {}
        spent["evaluations"] += len(scaled)
        points = [measured(measurement.step, own, strength) for strength, own in scaled.items()]
        search.ended(number, status, measurement, points)
        if status is TrialStatus.COMPLETE:
            keep([(training.point, strength) for strength in (1.0, *scaled)])
        result.by_trials.append((result.shares or [0.0])[-1])
        return report_every, True

    def keep(models: Sequence[Model]) -> None:
        share = table.found([*found, *models]) / table.hypervolume
        if share > (result.shares or [0.0])[-1]:
            found.extend(models)
            steps = {method: spent[method] for method in ("lora", "full")}
            result.spent.append(sum(steps.values()))
            result.shares.append(share)
            result.work.append(Work(spent["trials"], steps, spent["evaluations"]))

    budget = round(share_of_grid * table.steps)
    started = run_side_by_side(workers, budget, seed, start, advance)
    return replace(result, started=started)
