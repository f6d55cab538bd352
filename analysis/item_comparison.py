"""Answers item by item: what they show about a trial against the base or another trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.results.item_metrics import measured_on
from analysis.results.repeats import LEVEL, SIGNIFICANT
from analysis.stats.intervals import Interval, over_items
from analysis.stats.significance import sign_flips
from analysis.stats.task_parts import task_parts
from analysis.sweeps import Sweep
from trainables.records.item_records import PairedItem, pair_items
from trainables.records.schema import ItemScore, PointId, TaskScore, TrialRecord

Scores = Mapping[str, NDArray[np.float64]]
Weighted = tuple[list[NDArray[np.float64]], list[float]]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions of a role's tasks.

    Attributes:
        difference: first minus second accuracy, mean over tasks. The interval includes 0 if the
            test does not tell the two apart.
        test: `McNemar` if every question is right or wrong, `sign flips` if they are graded.
        p_value: of the test.
        differing: number of questions on which the two differ.
        picked_from: number of comparisons that this is the best of; the interval and the p-value
            hold for all of them at once (Bonferroni).
        are_trained: whether both are trained models, which differ from one training to the next.
        over_repeats: the difference of the means over both models' repeats with other seeds; None
            if neither has a complete one.
        is_once: whether one of them has no complete repeat, so that its own run stands for them.
        is_flattered: whether that one is the better: it was picked, as if by luck.
        seeds: interval of `over_repeats`; None for fewer than two repeats of both.
        repeats, diverged: how many of the two's repeats are complete, and how many diverged.
    """

    difference: Interval
    test: Literal["McNemar", "sign flips"]
    p_value: float
    differing: int
    picked_from: int
    are_trained: bool
    over_repeats: float | None = None
    is_once: bool = False
    is_flattered: bool = False
    seeds: Interval | None = None
    repeats: int = 0
    diverged: int = 0

    @property
    def runs_differ(self) -> bool:
        """Whether test and interval tell these two runs apart: other trainings are not in them."""
        return self.p_value < SIGNIFICANT and self.difference.excludes_0

    @property
    def repeats_differ(self) -> bool:
        """Whether repeats by themselves tell the two apart: not if any diverged."""
        is_whole = not (self.diverged or self.is_flattered)
        return is_whole and self.seeds is not None and self.seeds.excludes_0

    @property
    def is_doubted(self) -> bool:
        """Whether repeats leave the difference in doubt."""
        if self.diverged or self.over_repeats is None:
            return bool(self.diverged)
        is_alike = self.over_repeats * self.difference.estimate > 0
        return not is_alike or (self.seeds is not None and not self.seeds.excludes_0)

    @property
    def is_shown(self) -> bool:
        """Whether the runs differ and repeats agree; of two trained models these must decide."""
        is_decided = not self.are_trained or (self.seeds is not None and not self.is_flattered)
        return self.runs_differ and not self.is_doubted and is_decided

    def with_p_value(self, p_value: float) -> Comparison:
        """The comparison with an adjusted p-value; if it tells nothing apart, 0 is included."""
        is_apart = p_value < SIGNIFICANT
        difference = self.difference if is_apart else self.difference.including_0()
        return replace(self, p_value=p_value, difference=difference)

    def negated(self) -> Comparison:
        """The comparison by what falls as accuracy rises, such as forgetting."""
        return replace(self, difference=self.difference.negated())


class Items:
    """The items of one or several sweeps with the same model and evaluation, read once.

    Args:
        sweeps: the base's items and scores are read from the first.
        sweep_of: the sweep of each trial by its id.
    """

    def __init__(self, sweeps: Sequence[Sweep], sweep_of: Mapping[str, Sweep]) -> None:
        self._first, self._sweep_of = sweeps[0], sweep_of
        self._read: dict[PointId, Scores] = {}
        self._parts = cache(lambda tasks: task_parts(self._base_items_by_task, tasks))

    def pairs(self, record: TrialRecord) -> dict[str, list[PairedItem]]:
        """The base's and the trial's outcome on each item; empty if there are none on disk."""
        ledger = self._sweep_of[record.config.trial_id].ledger
        return pair_items(self._base_items, ledger.items(record))

    def interval(self, record: TrialRecord, metric: str, picked_from: int) -> Interval | None:
        """Interval over items of accuracy, or of forgetting as in `compare`; of tasks or of one.

        None for other metrics, or if the items are not on disk. It holds for `picked_from` trials
        at once.
        """
        tasks, is_forgetting = measured_on(metric, self._tasks)
        if is_forgetting:
            kept = self.compare(record, None, tasks, picked_from)
            return kept.difference.negated() if kept else None
        sides = self._sides(record, None, tasks)
        if sides is None:
            return None
        tuned, _, weights = sides
        return over_items(tuned, weights, bounds=(0, 1), level=_level(picked_from))

    def compare(
        self, first: TrialRecord, second: TrialRecord | None, tasks: Sequence[str], picked_from: int
    ) -> Comparison | None:
        """Compare a trial with another, or with the base, on some tasks.

        None if there are no tasks, or if an item was answered by only one of the two.

        Args:
            first: a trial.
            second: the trial to compare with; None for the base.
            tasks: weighted equally.
            picked_from: number of comparisons on these items that this one was picked from.
        """
        found = self.differences(first, second, tasks)
        if found is None:
            return None
        differences, weights = found
        interval = over_items(differences, weights, bounds=(-1, 1), level=_level(picked_from))
        differing = sum(int((part != 0).sum()) for part in differences)
        is_graded = not all(np.isin(part, (-1, 0, 1)).all() for part in differences)
        p_value = min(1.0, picked_from * sign_flips(differences, weights))
        if p_value >= SIGNIFICANT:
            interval = interval.including_0()
        test: Literal["McNemar", "sign flips"] = "sign flips" if is_graded else "McNemar"
        are_trained = second is not None
        return Comparison(interval, test, p_value, differing, picked_from, are_trained)

    def differences(
        self, first: TrialRecord, second: TrialRecord | None, tasks: Sequence[str]
    ) -> Weighted | None:
        """First minus second, item by item in parts, and the parts' weights.

        None if `compare` gives None.
        """
        sides = self._sides(first, second, tasks)
        if sides is None:
            return None
        one, other, weights = sides
        return [a - b for a, b in zip(one, other, strict=True)], weights

    @property
    def _tasks(self) -> Mapping[str, TaskScore]:
        return self._first.base.scores

    def _sides(
        self, first: TrialRecord, second: TrialRecord | None, tasks: Sequence[str]
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]], list[float]] | None:
        """Both models' scores by part, and the parts' weights."""
        one = self._scores_of(first)
        base = self._base_scores
        other = self._scores_of(second) if second else base
        if not tasks or any(
            task not in base or len(scores.get(task, ())) != len(base[task])
            for scores in (one, other)
            for task in tasks
        ):
            return None
        parts = self._parts(tuple(tasks))
        own, others = ([scores[p.task][p.positions] for p in parts] for scores in (one, other))
        return own, others, [part.weight for part in parts]

    @cached_property
    def _base_scores(self) -> Scores:
        return {
            task: np.array([item.score for item in items])
            for task, items in self._base_items_by_task.items()
        }

    @cached_property
    def _base_items_by_task(self) -> dict[str, list[ItemScore]]:
        found: dict[str, list[ItemScore]] = {}
        for item in self._base_items:
            found.setdefault(item.task, []).append(item)
        return found

    def _scores_of(self, record: TrialRecord) -> Scores:
        if record.point_id not in self._read:
            self._read[record.point_id] = {
                task: np.array([pair.tuned.score for pair in pairs])
                for task, pairs in self.pairs(record).items()
            }
        return self._read[record.point_id]

    @cached_property
    def _base_items(self) -> list[ItemScore]:
        try:
            return self._first.ledger.base_items()
        except FileNotFoundError:  # the bulk of a sweep, so they may have been left out
            return []


def _level(picked_from: int) -> float:
    """Of each of as many intervals that hold at once at LEVEL (Bonferroni)."""
    return 1 - (1 - LEVEL) / picked_from
