"""What the recommended trial is at each strength of its update."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.results.formatting import end_in_points, metric_name, metric_text, points
from analysis.shown_sweeps import Results
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialRecord


@dataclass(frozen=True)
class StrengthTable:
    """One row a strength, from the base at 0 upwards.

    Attributes:
        trial: whose.
        taken: index of the row that is recommended.
        note: what the numbers are.
    """

    trial: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    taken: int
    note: str


def strength_table(results: Results) -> StrengthTable | None:
    """The recommended trial's curve; None if it was evaluated at no other strength."""
    if results.recommendation is None:
        return None
    taken = results.recommendation.trial
    own = (r for r in results.complete if r.config.trial_id == taken.config.trial_id)
    trial = next(own, None)
    if trial is None or not trial.points:
        return None
    curve = [*trial.curve, *trial.repaired]
    metrics = [m for m in results.judged_by if any(r.metric(m) is not None for r in curve)]
    base = results.sweep(trial).base.metrics
    of_base = ("0, the base", *(_written(m, base.get(m)) for m in metrics))
    titles = ("strength", *map(metric_name, metrics))
    note = (
        "Strength s is the base plus s times what training changed. Intervals (95 %) are over "
        f"items and hold for all {len(results.candidates)} {results.candidate_noun}s at once."
    )
    rows = tuple(_row(results, record, metrics) for record in curve)
    ids = [record.point_id for record in curve]
    where = 1 + ids.index(taken.point_id)
    return StrengthTable(results.name(trial), titles, (of_base, *rows), where, note)


def _row(results: Results, record: TrialRecord, metrics: list[str]) -> tuple[str, ...]:
    name = f"{record.strength:g}"
    if record.repair:
        name = results.name(record).removeprefix(f"trial {record.number} ")
    return name, *(_cell(results, record, metric) for metric in metrics)


def _cell(results: Results, record: TrialRecord, metric: str) -> str:
    text = _written(metric, record.metric(metric))
    found = results.items.interval(record, metric, len(results.candidates))
    if found is None:
        return text
    low, high = (
        end_in_points(end) if metric == FORGETTING_MEAN else metric_text(metric, end)
        for end in (found.low, found.high)
    )
    return f"{text} ({low} to {high})"


def _written(metric: str, value: float | None) -> str:
    if value is not None and metric == FORGETTING_MEAN:
        return points(value)
    return metric_text(metric, value)
