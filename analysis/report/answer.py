"""The answer first: the recommended trial, its trade-off and its intervals."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from analysis.report.recipe_section import recipe_answer
from analysis.results.formatting import (
    capitalized,
    end_in_points,
    metric_name,
    metric_text,
    points,
    setting_in_full,
)
from analysis.results.recommendation import Recommendation
from analysis.results.repeats import diverged
from analysis.shown_sweeps import Results
from analysis.stats.intervals import Interval
from trainables.config import Constraint
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import Repair, TrialRecord
from trainables.storage.storage import is_address


@dataclass(frozen=True)
class Number:
    """One of the numbers a trial is judged by.

    Attributes:
        base: the base's value; None for forgetting, where it is 0.
        interval: over items, such as `0.797 to 0.878`; for all trials this one was picked from.
        seeds: the mean over repeats with other seeds, its interval, and how many diverged.
        reference: whose value is beside it, and that value at its best trade-off, perhaps not its
            best in this.
    """

    name: str
    value: str
    base: str | None
    interval: str | None
    seeds: str | None
    reference: tuple[str, str] | None

    @property
    def beside(self) -> list[str]:
        """What stands beside the value."""
        parts = {
            "95 % over items" if self.seeds else "95 %": self.interval,
            "over seeds": self.seeds,
            "base": self.base,
        }
        if self.reference:
            label, value = self.reference
            parts[f"{label} at its best trade-off"] = value
        return [f"{what}: {value}" for what, value in parts.items() if value]


@dataclass(frozen=True)
class Answer:
    """The recommended trial.

    Attributes:
        strength, repair: at which point it is taken.
        setting: such as `LoRA, rank 4, alpha 4, learning rate 3.9e-03`.
        weights: where they are; None if they were not kept or are gone.
        recipes: which recipe forgets least at equal accuracy; None if there are not two.
    """

    trial: str
    trial_id: str
    strength: float
    repair: Repair | None
    setting: str
    reason: str
    is_feasible: bool
    numbers: tuple[Number, ...]
    weights: str | None
    recipes: str | None


def answer(results: Results) -> Answer | None:
    """The recommended trial; None if no trial is complete."""
    recommendation = results.recommendation
    if recommendation is None:
        return None
    trial = recommendation.trial
    return Answer(
        results.name(trial),
        trial.config.trial_id,
        trial.strength,
        trial.repair,
        setting_in_full(trial),
        capitalized(recommendation.reason)
        + _may_yet_break(results, recommendation)
        + "".join(sweep.missing_repeats(results.whose(sweep)) for sweep in results.sweeps),
        recommendation.feasible,
        tuple(
            _number(results, trial, metric)
            for metric in results.judged_by
            if trial.metric(metric) is not None
        ),
        _weights(results, trial),
        recipe_answer(results),
    )


def _weights(results: Results, trial: TrialRecord) -> str | None:
    """On this machine, or else in the object store that the sweep was written to."""
    kept = results.sweep(trial).ledger.weights(trial)
    if kept is not None:
        return str(kept.absolute())
    recorded = trial.weights_dir
    return recorded if recorded is not None and is_address(recorded) else None


def _may_yet_break(results: Results, recommendation: Recommendation) -> str:
    """The constraints that it keeps, but perhaps by luck: of many trials some do."""
    if not recommendation.feasible:
        return ""
    doubted: defaultdict[str, list[str]] = defaultdict(list)
    for constraint in results.goals.constraints:
        doubted[_doubt(results, recommendation.trial, constraint)].append(str(constraint))
    return "".join(f" {doubt.format(' and '.join(of))}." for doubt, of in doubted.items() if doubt)


def _doubt(results: Results, trial: TrialRecord, constraint: Constraint) -> str:
    """Why a trial may yet break a constraint, which `{}` stands for; empty if it may not."""
    intervals = {
        "items": results.items.interval(trial, constraint.metric, len(results.candidates)),
        "repeats": results.over_seeds(trial, constraint.metric),
    }
    known = {what: interval for what, interval in intervals.items() if interval}
    if not known:
        return "That it keeps {} is as measured, without an interval"
    undecided = [
        what
        for what, interval in known.items()
        if not (constraint.holds(interval.low) and constraint.holds(interval.high))
    ]
    if not undecided:
        return ""
    return f"Its {' and '.join(undecided)} do not decide whether it truly keeps {{}}"


def _over_seeds(results: Results, trial: TrialRecord, metric: str) -> str | None:
    """Such as `+5.2 points (+4.1 to +6.3, n = 4), 1 of 5 diverged`."""
    repeats = results.repeats(trial)
    parts = []
    if values := results.repeated(trial, metric):
        interval = _range(results.over_seeds(trial, metric), metric)
        parts.append(f"{_written(metric, fmean(values))} ({interval or 'n = 1'})")
    if lost := diverged(repeats):
        parts.append(f"{lost} of {len(repeats)} diverged")
    return ", ".join(parts) or None


def _written(metric: str, value: float) -> str:
    return f"{points(value)} points" if metric == FORGETTING_MEAN else metric_text(metric, value)


def _number(results: Results, trial: TrialRecord, metric: str) -> Number:
    def write(value: float | None) -> str | None:
        return None if value is None else _written(metric, value)

    own = results.sweep(trial)
    reference = results.reference(own)
    other = write(reference.best.metric(metric)) if reference else None
    is_other = reference is not None and reference.recipe != trial.config.recipe
    return Number(
        metric_name(metric),
        write(trial.metric(metric)) or "",
        None if metric == FORGETTING_MEAN else write(own.base.metrics.get(metric)),
        _interval(results, trial, metric),
        _over_seeds(results, trial, metric),
        (reference.label, other) if reference and other and is_other else None,
    )


def _interval(results: Results, trial: TrialRecord, metric: str) -> str | None:
    of = len(results.candidates)
    text = _range(results.items.interval(trial, metric, picked_from=of), metric)
    return f"{text}, simultaneous over {of} {results.candidate_noun}s" if text and of > 1 else text


def _range(interval: Interval | None, metric: str) -> str | None:
    if interval is None:
        return None
    write = end_in_points if metric == FORGETTING_MEAN else partial(metric_text, metric)
    return f"{write(interval.low)} to {write(interval.high)}, n = {interval.n}"
