"""Repeats with other seeds: which are run, their means and intervals, and what they decide."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from builders import GAIN, LOSS, sweep_config, trial
from simulated_search import make_searcher, run, sweep

from analysis.results.pareto import pareto_front
from analysis.results.recommendation import Recommendation, recommend
from trainables.config import TrialConfig
from trainables.records.schema import TrialRecord, TrialStatus
from tune.folder.tables import write_confirmed_csv

# Of eight trials two mark the ends of the front, and all others but 2 and 5 are far from it.
BY_NUMBER = {0: (1.0, 1.0), 1: (0.01, 0.01), 2: (0.9, 0.1), 5: (0.8, 0.2)}
WINNERS = [2, 5]


def two_stand_out(trial: TrialConfig) -> tuple[TrialStatus, dict[str, float]]:
    gain, loss = BY_NUMBER.get(trial.number, (0.1, 0.9))
    status = TrialStatus.DIVERGED if trial.number == 9 else TrialStatus.COMPLETE
    return status, {GAIN: gain, LOSS: loss}


def test_repeats_are_tabulated_and_no_trials_of_the_search(tmp_path: Path) -> None:
    config = sweep(trials=8, confirm={"top_k": 2, "seeds": 3})
    records = run(make_searcher(config), two_stand_out)
    search = [record for record in records if record.confirms is None]
    assert pareto_front(config, records) == pareto_front(config, search)
    best = recommend(config, records, judged=())
    assert best is not None
    assert best.trial.number == WINNERS[0]
    assert [record.confirms for record in records[8:]] == [n for n in WINNERS for _ in range(3)]

    write_confirmed_csv(tmp_path / "confirmed.csv", records, {})
    with (tmp_path / "confirmed.csv").open(newline="") as stream:
        rows = {(int(row["number"]), row["metric"]): row for row in csv.DictReader(stream)}
    assert {number for number, _ in rows} == set(WINNERS)
    for (number, metric), row in rows.items():
        repeats = [record for record in records if record.confirms == number]
        complete = [r.metric(metric) for r in repeats if r.status is TrialStatus.COMPLETE]
        assert int(row["runs"]) == len(complete)
        assert float(row["mean"]) == pytest.approx(math.fsum(complete) / len(complete))
        assert int(row["diverged"]) == sum(r.status is TrialStatus.DIVERGED for r in repeats)
    assert [path.name for path in tmp_path.iterdir()] == ["confirmed.csv"]


def searched(number: int, metrics: dict[str, float], point: int | None = None) -> TrialRecord:
    """A trial of the search; of a point of its own unless one is given."""
    return trial(
        number, metrics, learning_rate=rate(number if point is None else point), seed=number
    )


def repeat(number: int, winner: int, status: TrialStatus, metrics: dict[str, float]) -> TrialRecord:
    """A repeat run of a winner, which is the first trial of its point."""
    return trial(number, metrics, status, confirms=winner, learning_rate=rate(winner), seed=number)


def rate(point: int) -> float:
    return 1e-5 * (1 + point)


COMPLETE, DIVERGED = TrialStatus.COMPLETE, TrialStatus.DIVERGED
SEARCHED = [searched(0, {GAIN: 0.9, LOSS: 0.049}), searched(1, {GAIN: 0.8, LOSS: 0.03})]
GOALS = sweep_config(objectives=[{"metric": GAIN, "mode": "max"}], constraints=[f"{LOSS} <= 0.05"])


def recommended(*repeats: TrialRecord) -> Recommendation:
    records = [*SEARCHED, *repeats]
    found = recommend(GOALS, records)
    assert found is not None
    return found


def test_winner_that_was_lucky_once_is_not_recommended() -> None:
    found = recommended(
        repeat(2, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.07}),
        repeat(3, 0, COMPLETE, {GAIN: 0.9, LOSS: 0.09}),
        repeat(4, 1, COMPLETE, {GAIN: 0.7, LOSS: 0.02}),
        repeat(5, 1, COMPLETE, {GAIN: 0.8, LOSS: 0.04}),
    )
    assert recommended().trial.number == 0
    assert (found.trial, found.feasible) == (SEARCHED[1], True)  # with its own measurements
    assert found.reason == (
        "by the means over repeats with other seeds, the only repeated trial that keeps every "
        f"constraint: {GAIN} 0.750. In the mean over other "
        "seeds trial 0 broke a constraint. One run of each would have chosen trial 0."
    )
