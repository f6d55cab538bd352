"""Sweeps that are shown together: which may be, what is said of it, which trial is whose."""

from __future__ import annotations

import json
import shutil

import pytest
from builders import change_config
from synthetic_sweep import SyntheticSweep

from analysis.paper_table import paper_table, summary_texts
from analysis.report.formats import as_json, as_markdown
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


def test_the_table_says_whose_its_trials_are(results):
    table = paper_table(results)
    for row, group in zip(table.rows[1:], results.groups, strict=True):
        name, trial, _ = summary_texts(row, [])
        assert name.endswith(f" of {results.sweep(group.best).name}")
        assert trial == f"{group.best.number} (of {len(group.trials)})"
    ids = {row["trial_id"] for row in json.loads(as_json(results))["table"]}
    assert ids == {None, *(group.best.config.trial_id for group in results.groups)}


def test_sweeps_of_one_name_are_told_apart_by_their_ids(tmp_path):
    folders = [SyntheticSweep(4, name=n, budget=9).write(tmp_path / n) for n in ("one", "two")]
    for ledger in map(Ledger, folders):
        change_config(ledger, name="mine")
    results = Results(open_sweeps(folders))
    assert len({results.name(record) for record in results.complete}) == 8
    document = json.loads(as_json(results))
    assert document["unfinished"] == dict.fromkeys(("one-id", "two-id"), "4 of 9 trials ended")
    assert {row["sweep"] for row in document["trials"]} == {"one-id", "two-id"}
    assert "two-id is unfinished" in as_markdown(results)
    assert open_sweeps(folders[:1])[0].title == "mine"


def test_a_copy_of_a_sweep_does_not_count_twice(tmp_path):
    folder = SyntheticSweep(trials=4).write(tmp_path / "sweep")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(UserError, match=f"{folder} and {copy} are copies of one sweep") as caught:
        open_sweeps([folder, copy])
    assert len(caught.value.faults) == 1
