"""Means and intervals over seeds."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from scipy import stats
from test_searcher import GAIN, LOSS, run, searcher_of, sweep

from trainables.pareto import pareto_front, recommend
from trainables.records import TrialStatus
from tune.confirmation import confirmed, estimate, winners, write_confirmed_csv


def test_an_interval_is_that_of_students_t() -> None:
    values = [0.61, 0.55, 0.7, 0.66, 0.58]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert found.mean == pytest.approx(0.62)
    assert found.half_width is not None
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (low, high)
    )


def test_one_run_has_no_interval() -> None:
    assert estimate([0.5]).half_width is None


def test_runs_that_confirm_are_no_trials_of_the_search(tmp_path: Path) -> None:
    config = sweep(trials=8, confirm={"top_k": 2, "seeds": 3})
    records = run(searcher_of(config))
    search = [record for record in records if record.confirms is None]
    assert pareto_front(config, records) == pareto_front(config, search)
    best = recommend(config, records)
    assert best is not None
    assert winners(config, records, 2)[0].number == best.trial.number

    found = confirmed(records)
    assert set(found) == {w.number for w in winners(config, records, 2)}
    for number, metrics in found.items():
        runs = [
            record.metric(GAIN)
            for record in records
            if record.confirms == number and record.status is TrialStatus.COMPLETE
        ]
        assert metrics[GAIN].runs == len(runs)
        assert metrics[GAIN].mean == pytest.approx(math.fsum(filter(None, runs)) / len(runs))

    write_confirmed_csv(tmp_path / "confirmed.csv", records)
    with (tmp_path / "confirmed.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(int(row["number"]), row["metric"]) for row in rows} >= {
        (number, metric) for number in found for metric in (GAIN, LOSS)
    }
    assert [path.name for path in tmp_path.iterdir()] == ["confirmed.csv"]


def test_nothing_confirmed_leaves_no_table(tmp_path: Path) -> None:
    write_confirmed_csv(tmp_path / "confirmed.csv", run(searcher_of(sweep(trials=3))))
    assert list(tmp_path.iterdir()) == []
