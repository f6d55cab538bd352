"""Repeat runs of the search's best trials with other seeds, and how the trials fare in them.

The run that was chosen for being best is left out of the means: it was probably lucky.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from trainables.results.records import TrialRecord, TrialStatus


def repeats_of(trial: TrialRecord, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Repeat runs of a trial, among its sweep's records, that completed or diverged."""
    told = (TrialStatus.COMPLETE, TrialStatus.DIVERGED)
    return [r for r in records if r.confirms == trial.number and r.status in told]


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


def judged_by_repeats(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials that were repeated, with their metrics replaced by the means over repeat runs.

    If a repeat run diverged, the trial counts as diverged: no mean of the others makes up for that.
    Else it is left out while fewer of its repeat runs have ended than of another trial's: its mean
    is not as certain yet.

    Args:
        records: of one sweep.
    """
    judged = []
    repeats = [r for r in records if r.confirms is not None]
    ended = Counter(r.confirms for r in repeats if r.status is not TrialStatus.RUNNING)
    for number in sorted({r.confirms for r in repeats if r.confirms is not None}):
        trial = next((r for r in records if r.number == number and r.last), None)
        if trial is None or trial.last is None:
            continue
        repeats = repeats_of(trial, records)
        values = metrics_over(repeats)
        if diverged(repeats):
            judged.append(trial.model_copy(update={"status": TrialStatus.DIVERGED}))
        elif values and ended[number] == max(ended.values()):
            means = {key: statistics.fmean(of_all) for key, of_all in values.items()}
            last = trial.last.model_copy(update={"metrics": means})
            judged.append(trial.model_copy(update={"last": last}))
    return judged


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half-width of the mean's Student's t interval, in the values' unit; None for fewer than 2."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(t.ppf((1 + level) / 2, len(values) - 1)) * error
