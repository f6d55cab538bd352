"""Repeat runs of the search's best trials with other seeds, and how the trials fare in them.

The run that was chosen for being best is left out of the means: it was probably lucky.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from analysis.results.pareto import Goals, can_be_taken
from analysis.results.trade_off import best_trade_off
from trainables.config import ConfirmConfig
from trainables.records.schema import PointId, TrialRecord, TrialStatus, points_of

# Below this p-value a difference counts as shown. (1 - 0.95 is a float above 0.05.)
SIGNIFICANT = 0.05
# Confidence of every interval.
LEVEL = 1 - SIGNIFICANT
# How a repeat run ends that says something about its point.
CONCLUSIVE = (TrialStatus.COMPLETE, TrialStatus.DIVERGED)
Point = tuple[object, ...]


def find_repeats(trial: TrialRecord, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Repeat runs of a trial's point, among its sweep's records, that completed or diverged.

    Complete ones are at the strength of the trial. Empty for a repeat run, and for a trial that did
    not complete.
    """
    if trial.confirms is not None or trial.status is not TrialStatus.COMPLETE:
        return []
    point = point_of(trial)
    repeats = (r for r in records if r.confirms is not None and r.status in CONCLUSIVE)
    own = [repeat for repeat in repeats if point_of(repeat) == point]
    at_same = [r if r.status is TrialStatus.DIVERGED else r.at_same(trial) for r in own]
    return [repeat for repeat in at_same if repeat is not None]


def diverged(repeats: Iterable[TrialRecord]) -> int:
    """How many of the repeat runs diverged."""
    return sum(repeat.status is TrialStatus.DIVERGED for repeat in repeats)


def metrics_over(repeats: Iterable[TrialRecord]) -> dict[str, list[float]]:
    """Metrics that all complete repeat runs have, with one value per run; empty without any."""
    metrics = [
        repeat.last.metrics
        for repeat in repeats
        if repeat.status is TrialStatus.COMPLETE and repeat.last
    ]
    keys = [key for key in metrics[0] if all(key in own for own in metrics)] if metrics else []
    return {key: [own[key] for own in metrics] for key in keys}


def judged_by_repeats(
    records: Sequence[TrialRecord], confirm: ConfirmConfig | None
) -> list[TrialRecord]:
    """Complete trials of points that were repeated, with the means over the repeat runs as metrics.

    Each strength of a trial is judged by the same strength of its repeats. If a repeat run
    diverged, the trial counts as diverged. Else it is left out until as many of its repeat runs
    have ended as are asked for or, if that is fewer, as of the point that has most.

    Args:
        records: of one sweep.
        confirm: what it asks for now, perhaps less than what an earlier start ran; None if nothing.
    """
    ended: dict[Point, list[TrialRecord]] = {}
    for record in records:
        if record.confirms is not None and record.status is not TrialStatus.RUNNING:
            ended.setdefault(point_of(record), []).append(record)
    enough = max(map(len, ended.values()), default=0)
    if confirm:
        enough = min(enough, confirm.seeds)
    repeated = [record for record in records if ended and point_of(record) in ended]
    judged = []
    for trial in points_of(sorted(repeated, key=lambda record: record.number)):
        runs = ended[point_of(trial)]
        repeats = find_repeats(trial, runs)
        values = metrics_over(repeats)
        if diverged(repeats):
            judged.append(trial.model_copy(update={"status": TrialStatus.DIVERGED}))
        elif trial.last and values and len(runs) >= enough:
            means = {key: statistics.fmean(of_all) for key, of_all in values.items()}
            last = trial.last.model_copy(update={"metrics": means})
            judged.append(trial.model_copy(update={"last": last}))
    return judged


def best_confirmed(
    goals: Goals,
    trials: Sequence[TrialRecord],
    judged: Mapping[PointId, TrialRecord],
    ranges: Sequence[tuple[float, float]],
) -> TrialRecord:
    """The best trade-off, as of `best_trade_off`, where trials that repeat runs refuted come last.

    `judged`: those of `judged_by_repeats`, by `point_id`.
    """
    sound = [r for r in trials if can_be_taken(goals, judged.get(r.point_id, r))]
    untold = [record for record in trials if record.point_id not in judged]
    return best_trade_off(goals, sound or untold or trials, ranges)


def point_of(record: TrialRecord) -> Point:
    """The point of the search that a trial ran, which other seeds may have run too.

    Known by what it trained with: a search that has been edited since has other parameters.
    """
    config, train = record.config, record.config.train
    settings = [*config.method.model_dump().values(), *config.loss.model_dump().values()]
    length = (train.batch_size, record.epochs, train.steps)
    rate = (config.learning_rate, train.warmup, train.weight_decay)
    # An alpha may be given as itself or by its ratio to the rank, which differ by rounding.
    return config.recipe, *map(_rounded, (*settings, *rate, *length))


def _rounded(value: object) -> object:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def half_width(values: Sequence[float], rounding: float = 0.0) -> float | None:
    """Half-width of the mean's Student's t interval at LEVEL; None for fewer than two values.

    Args:
        values: of a metric, one per run.
        rounding: standard deviation of what they are rounded by; the least they vary by.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    error = max(statistics.stdev(values), rounding) / math.sqrt(len(values))
    return float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
