"""Confirming the winners: the best trials again with other seeds, and what they measure then.

The run that was chosen for being best is left out of the means: it was lucky more often than not.
"""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainables.metric_keys import METRICS
from trainables.pareto import recommend
from trainables.records import TrialRecord, TrialStatus
from tune.sweep_config import ConfirmConfig, SweepConfig


def unconfirmed(
    confirm: ConfirmConfig, chosen: Sequence[TrialRecord], records: Iterable[TrialRecord]
) -> Iterator[tuple[TrialRecord, int]]:
    """Winners, and seeds that they have not been run with yet."""
    done = {(record.confirms, record.config.seed) for record in records}
    for winner in chosen:
        for seed in range(winner.config.seed + 1, winner.config.seed + confirm.seeds + 1):
            if (winner.number, seed) not in done:
                yield winner, seed


def winners(config: SweepConfig, records: Iterable[TrialRecord], count: int) -> list[TrialRecord]:
    """The trial to take, the one to take if that were not there, and so on, up to so many."""
    left = [record for record in records if record.confirms is None]
    found: list[TrialRecord] = []
    while len(found) < count:
        best = recommend(config, left)
        if best is None or not best.feasible:
            break
        found.append(best.trial)
        left.remove(best.trial)
    return found


@dataclass(frozen=True)
class Estimate:
    """A metric over seeds.

    Attributes:
        mean: over the confirming runs.
        half_width: of the 95 % interval of the mean, by Student's t; None for a single run.
        runs: how many.
    """

    mean: float
    half_width: float | None
    runs: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of at least one value."""
    from scipy.stats import t

    runs = len(values)
    if runs == 1:
        return Estimate(values[0], None, 1)
    error = statistics.stdev(values) / math.sqrt(runs)
    return Estimate(statistics.fmean(values), float(t.ppf(0.975, runs - 1)) * error, runs)


def confirmed(records: Sequence[TrialRecord]) -> dict[int, dict[str, Estimate]]:
    """For each trial that was confirmed, every metric that all of its complete runs logged."""
    found: dict[int, dict[str, Estimate]] = {}
    for number in sorted({r.confirms for r in records if r.confirms is not None}):
        runs = [
            record.last.metrics
            for record in records
            if record.confirms == number and record.status is TrialStatus.COMPLETE and record.last
        ]
        if runs:
            keys = [key for key in runs[0] if all(key in metrics for metrics in runs)]
            found[number] = {key: estimate([metrics[key] for metrics in runs]) for key in keys}
    return found


def write_confirmed_csv(file: Path, records: Sequence[TrialRecord]) -> None:
    """One row for each confirmed trial and metric; no file where nothing was confirmed."""
    found = confirmed(records)
    if not found:
        return
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["number", "metric", "unit", "mean", "half_width_95", "runs"])
        for number, metrics in found.items():
            for key, of in metrics.items():
                unit = METRICS[key].unit if key in METRICS else ""
                writer.writerow([number, key, unit, of.mean, of.half_width, of.runs])
    unfinished.replace(file)
