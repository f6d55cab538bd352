"""Sweeps that are shown together: which may be, what is said of it, which trial is whose."""

from __future__ import annotations

import json
import shutil

import pytest
from builders import change_config
from synthetic_sweep import SyntheticSweep

from analysis.paper_table import paper_table, summary_texts
from analysis.report.cost import failures
from analysis.report.formats import as_json, as_markdown
from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus


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
        name, trial, _ = summary_texts(row, [])
        assert name.endswith(f" of {results.sweep(group.best).name}")
        assert trial == f"{group.best.number} (of {len(group.trials)})"
    ids = {row["trial_id"] for row in json.loads(as_json(results))["table"]}
    assert ids == {None, *(group.best.config.trial_id for group in results.groups)}


def test_trials_that_are_as_good_are_those_of_their_sweep(results):
    """Both sweeps drew the same, so the one to take has its like in the other."""
    trial = results.recommendation.trial
    assert results.sweep(trial).name == "one"
    assert f"(as good: trial {trial.number} of two)" in results.recommendation.reason


def named_alike(folder, names: tuple[str, ...], name: str) -> list:
    """Folders of sweeps that were started under one name; their ids differ."""
    folders = [SyntheticSweep(trials=4, name=n, budget=9).write(folder / n) for n in names]
    for ledger in map(Ledger, folders):
        change_config(ledger, name=name)
    return folders


def test_sweeps_of_one_name_are_told_apart_by_their_ids(tmp_path):
    folders = named_alike(tmp_path, ("one", "two"), "mine")
    results = Results(open_sweeps(folders))
    names = {results.name(record) for record in results.complete}
    assert len(names) == len(results.complete) == 8
    assert (
        results.names(results.complete)
        == "trials 0, 1, 2, 3 of one-id, trials 0, 1, 2, 3 of two-id"
    )
    told = json.loads(as_json(results))
    assert told["unfinished"] == dict.fromkeys(("one-id", "two-id"), "4 of 9 trials ended")
    assert {row["sweep"] for row in told["trials"]} == {"one-id", "two-id"}
    for text in (render(results), as_markdown(results)):
        assert "one-id, two-id" in text
        assert "two-id is unfinished" in text
    assert Results(open_sweeps(folders[:1])).sweeps[0].title == "mine"


def test_a_copy_of_a_sweep_does_not_count_twice(tmp_path):
    folder = SyntheticSweep(trials=4).write(tmp_path / "sweep")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(UserError, match=f"{folder} and {copy} are copies of one sweep") as caught:
        open_sweeps([folder, copy])
    assert len(caught.value.faults) == 1
