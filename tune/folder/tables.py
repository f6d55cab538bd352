"""The tables that a sweep writes: results.csv and confirmed.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from analysis.results.item_metrics import rounding
from analysis.results.repeats import diverged, find_repeats, half_width, metrics_over
from analysis.results.trial_columns import column_order, setting_columns
from trainables.metric_keys import METRICS
from trainables.records.schema import TaskScore, TrialRecord, points_of
from trainables.storage.disk import whole_file


def write_results_csv(file: Path, records: Sequence[TrialRecord]) -> None:
    """One row per trial, failed ones included, and per point, by number and strength.

    The best values along a training are in the row of what it left. The file is replaced
    atomically.
    """
    points = points_of(sorted(records, key=lambda r: r.number))
    finals = _key_order(key for r in points for key in r.metrics)
    bests = _key_order(key for r in points for key in r.best)
    settings = [setting_columns(record) for record in points]
    columns = column_order(settings)
    rows = [
        row
        | {key: record.metric(key) for key in finals}
        | {f"best/{key}": None if record.is_altered else record.best.get(key) for key in bests}
        for row, record in zip(settings, points, strict=True)
    ]
    _write(file, rows, [*columns, *finals, *(f"best/{key}" for key in bests)])


def write_confirmed_csv(
    file: Path, records: Sequence[TrialRecord], scores: Mapping[str, TaskScore]
) -> None:
    """One row per repeated trial, strength and metric; no file without a row.

    `scores`: of the base, by task.
    """
    if found := repeated(records):
        rows = [row for trial, repeats in found for row in _means(trial, repeats, scores)]
        _write(file, rows, list(rows[0]))


def repeated(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, list[TrialRecord]]]:
    """Trials, at each strength, with repeats that completed or diverged, and the repeats."""
    repeats = [record for record in records if record.confirms is not None]
    confirmed = {record.confirms for record in repeats}
    trials = points_of(record for record in records if record.number in confirmed)
    return [(trial, found) for trial in trials if (found := find_repeats(trial, repeats))]


def _means(
    trial: TrialRecord, repeats: Sequence[TrialRecord], scores: Mapping[str, TaskScore]
) -> Iterator[dict[str, object]]:
    for key, values in (metrics_over(repeats) or {"": []}).items():
        yield {
            "number": trial.number,
            "strength": trial.strength,
            "repair": trial.repair,
            "metric": key,
            "unit": METRICS[key].unit if key in METRICS else "",
            "mean": statistics.fmean(values) if values else None,
            "half_width_95": half_width(values, rounding(key, scores)),
            "runs": len(values),
            "diverged": diverged(repeats),
        }


def _key_order(keys: Iterable[str]) -> list[str]:
    """The keys in the order of METRICS, then the others by name."""
    found = set(keys)
    listed = [key for key in METRICS if key in found]
    return listed + sorted(found - set(listed))


def _write(file: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    with whole_file(file) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
