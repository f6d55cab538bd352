"""What the sweep cost, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from analysis.results.formatting import NOT_ENDED, by_reason
from analysis.shown_sweeps import Results
from trainables.metric_keys import (
    EVAL_SECONDS,
    GPU_HOURS,
    MAX_RESERVED,
    TOKENS_PER_SECOND,
    TOKENS_SEEN,
    TRAIN_SECONDS,
    TRAINABLE_PARAMETERS,
)
from trainables.records.schema import FAILURES, TrialRecord, TrialStatus


@dataclass(frozen=True)
class Cost:
    """Means over the complete trials of one sweep and recipe; None if nothing was logged.

    Attributes:
        parameters: the fewest and the most that were trained; they rise with the capacity.
        tokens: that a trial was trained on.
        gpu_hours: per trial.
        memory: highest peak, GiB.
    """

    label: str
    trials: int
    parameters: tuple[float, float] | None
    tokens: float | None
    train_seconds: float | None
    eval_seconds: float | None
    gpu_hours: float | None
    tokens_per_second: float | None
    memory: float | None


def costs(results: Results) -> list[Cost]:
    """Costs by recipe."""
    return [_cost(results, trials) for trials in trials_by_recipe(results)]


def trials_by_recipe(results: Results) -> list[list[TrialRecord]]:
    """The complete trials of each sweep's recipes."""
    found: dict[tuple[str, str], list[TrialRecord]] = {}
    for group in results.groups:
        found.setdefault((group.recipe, group.sweep.title), []).extend(group.trials)
    return list(found.values())


def _cost(results: Results, trials: Sequence[TrialRecord]) -> Cost:
    trained = _values(trials, TRAINABLE_PARAMETERS)
    first = trials[0]
    return Cost(
        first.config.recipe_title + results.whose(results.sweep(first)),
        len(trials),
        (min(trained), max(trained)) if trained else None,
        _mean(trials, TOKENS_SEEN),
        _mean(trials, TRAIN_SECONDS),
        _mean(trials, EVAL_SECONDS),
        _mean(trials, GPU_HOURS),
        _mean(trials, TOKENS_PER_SECOND),
        max(_values(trials, MAX_RESERVED), default=None),
    )


def _values(records: Sequence[TrialRecord], metric: str) -> list[float]:
    return [value for record in records if (value := record.metric(metric)) is not None]


def _mean(records: Sequence[TrialRecord], metric: str) -> float | None:
    values = _values(records, metric)
    return fmean(values) if values else None


def gpu_hours(results: Results) -> float:
    """GPU-hours of training and evaluation of all trials, including failed ones and repeats."""
    return sum(_values(results.trials, GPU_HOURS))


def trial_hours(results: Results) -> float:
    """Summed wall-clock hours of all trials, up to the last measurement of those without an end."""
    seconds = (r.seconds_measured if r.seconds is None else r.seconds for r in results.trials)
    return sum(seconds) / 3600


def number(value: float) -> str:
    """Format with three significant digits, never an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return np.format_float_positional(value, 3, fractional=False, trim="-")


@dataclass(frozen=True)
class Failure:
    """Trials that ended the same way for the same reason."""

    status: str
    reason: str
    count: int
    trials: str


def failures(results: Results) -> list[Failure]:
    """Failed trials by reason, most frequent first, followed by trials stopped early."""
    return [
        Failure(status.in_words, reason, len(trials), results.names(trials))
        for statuses in (FAILURES, (TrialStatus.STOPPED_EARLY,))
        for status, reason, trials in by_reason(r for r in results.trials if r.status in statuses)
    ]


def none_failed(results: Results) -> str:
    """What is said where `failures` finds nothing: what has no end yet may still fail."""
    text = "no trial failed, and none was stopped early"
    running = sum(record.status is TrialStatus.RUNNING for record in results.trials)
    if not running:
        return f"Nothing: {text}."
    return f"So far {text}; {running} {'is' if running == 1 else 'are'} {NOT_ENDED}."
