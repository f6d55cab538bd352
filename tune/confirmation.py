"""Confirming the winners: the best trials again with other seeds, and what they measure then."""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainables.metric_keys import METRICS
from trainables.recommendation import recommend
from trainables.records import TrialRecord
from trainables.repeats import diverged, half_width, metrics_over, repeats_of
from tune.sweep_config import ConfirmConfig, SweepConfig


def unconfirmed(
    confirm: ConfirmConfig, chosen: Sequence[TrialRecord], records: Sequence[TrialRecord]
) -> Iterator[tuple[TrialRecord, int]]:
    """Winners, and seeds that their points have not been run with yet."""
    for winner in chosen:
        runs = [record for record in records if record.params == winner.params]
        taken = {run.config.seed for run in runs}
        first = max(run.config.seed for run in runs if run.confirms is None) + 1
        unused = [seed for seed in range(first, first + confirm.seeds) if seed not in taken]
        repeats = sum(run.confirms is not None for run in runs)
        for seed in unused[: max(0, confirm.seeds - repeats)]:
            yield winner, seed


def winners(config: SweepConfig, records: Iterable[TrialRecord], count: int) -> list[TrialRecord]:
    """The trial to take, the one to take if that point were not there, and so on, up to so many."""
    left = [record for record in records if record.confirms is None]
    found: list[TrialRecord] = []
    while len(found) < count:
        best = recommend(config, left)
        if best is None or not best.feasible:
            break
        found.append(best.trial)
        left = [record for record in left if record.params != best.trial.params]
    return found


def write_confirmed_csv(file: Path, records: Sequence[TrialRecord]) -> None:
    """One row for each repeated trial and metric; no file where nothing was repeated."""
    rows = [row for trial in records for row in _rows(trial, repeats_of(trial, records))]
    if not rows:
        return
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["number", "metric", "unit", "mean", "half_width_95", "runs", "diverged"])
        writer.writerows(rows)
    unfinished.replace(file)


def _rows(trial: TrialRecord, repeats: Sequence[TrialRecord]) -> Iterator[list[object]]:
    for key, values in metrics_over(repeats).items():
        unit = METRICS[key].unit if key in METRICS else ""
        mean = statistics.fmean(values)
        yield [trial.number, key, unit, mean, half_width(values), len(values), diverged(repeats)]
