"""Sweeps that are shown together: which trial is whose."""

from __future__ import annotations

import json

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.paper_table import paper_table, summary_texts
from analysis.report.cost import failures
from analysis.report.formats import as_json
from analysis.results import Results
from analysis.sweeps import open_sweeps
from trainables.records import TrialStatus


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("sweeps")
    failed = {3: TrialStatus.FAILED, 5: TrialStatus.FAILED}
    sweeps = [SyntheticSweep(trials=8, name=name, failures=failed) for name in ("one", "two")]
    return Results(open_sweeps([sweep.write(folder / sweep.name) for sweep in sweeps]))


def test_failures_say_whose_they_are(results):
    [failure] = failures(results)
    assert failure.trials == "trials 3, 5 of one, trials 3, 5 of two"


def test_the_table_says_whose_its_trials_are(results):
    table = paper_table(results)
    for row, group in zip(table.rows[1:], results.groups, strict=True):
        assert summary_texts(row, [])[1] == f"{results.name(group.best)} (of {len(group.trials)})"
    ids = {row["trial_id"] for row in json.loads(as_json(results))["table"]}
    assert ids == {None, *(group.best.config.trial_id for group in results.groups)}


def test_trials_that_are_as_good_are_those_of_their_sweep(results):
    """Both sweeps drew the same, so the one to take has its like in the other."""
    trial = results.recommendation.trial
    assert results.sweep(trial).name == "one"
    assert f"(as good: trial {trial.number} of two)" in results.recommendation.reason


def test_trials_of_one_sweep_are_their_numbers(results):
    alone = Results(results.sweeps[:1])
    [failure] = failures(alone)
    assert failure.trials == "trials 3, 5"
    row = paper_table(alone).rows[1]
    assert summary_texts(row, [])[1] == f"{row.trial} (of {row.trials})"
