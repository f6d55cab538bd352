"""The answer beside the page: in JSON, in Markdown, and in the table of every trial."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from statistics import fmean

import pytest
from builders import change_config, repeat_of
from synthetic_sweep import SyntheticSweep

from analysis.report.answer import answer
from analysis.report.formats import as_json, as_markdown
from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from analysis.tracking.wandb_views import SweepViews
from trainables.metric_keys import IN_DOMAIN_ACC, KL_BASE_TO_TUNED
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

REPEATED = {100: 0.7, 101: 0.6, 102: None}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """A sweep of one trial that two repeats completed and a third did not."""
    bound = {"metric": KL_BASE_TO_TUNED, "operator": "<=", "bound": 2.0}
    sweep = SyntheticSweep(trials=1, full_every=1, budget=3, constraints=(bound,))
    ledger = Ledger(sweep.write(tmp_path_factory.mktemp("sweep")))
    [chosen] = ledger.trials()
    for number, accuracy in REPEATED.items():
        status = TrialStatus.COMPLETE if accuracy else TrialStatus.DIVERGED
        ledger.write_trial(repeat_of(chosen, number, {IN_DOMAIN_ACC: accuracy or 0.1}, status))
    return Results(open_sweeps([ledger.folder.root]))


def test_the_json_has_the_means_over_repeats(results):
    document, [trial] = json.loads(as_json(results)), results.complete
    found = document["answer"]
    assert (found["repeats"], found["repeats_diverged"]) == (3, 1)
    assert found["over_seeds"][IN_DOMAIN_ACC] == asdict(results.over_seeds(trial, IN_DOMAIN_ACC))
    assert found["over_seeds"][IN_DOMAIN_ACC]["estimate"] == pytest.approx(fmean((0.7, 0.6)))
    assert found["over_seeds"][KL_BASE_TO_TUNED]["estimate"] == pytest.approx(1.5)
    assert [point["trial"] for point in document["front"]] == [trial.config.trial_id]
    assert document["bases"] == {"synthetic": results.base.metrics}
    assert document["unfinished"] == {"synthetic": results.sweeps[0].unfinished}
    assert document["trial_hours"] == pytest.approx(4 * 60 / 3600)
    assert document["gpu_hours"] == pytest.approx(4 * 100 / 3600)


def test_report_and_wandb_tell_how_many_repeats_are_missing(results, tmp_path):
    message = "Missing: 2 of 5 repeats with other seeds, not run to their end."
    copy = shutil.copytree(results.sweeps[0].ledger.folder.root, tmp_path / "sweep")
    change_config(Ledger(copy), confirm={"top_k": 1, "seeds": 5})
    [chosen, *_] = Ledger(copy).trials()
    Ledger(copy).write_trial(repeat_of(chosen, 103, {}, TrialStatus.FAILED))
    [sweep] = open_sweeps(copy)
    assert json.loads(as_json(Results([sweep])))["reason"].endswith(message)
    assert message in as_markdown(Results([sweep]))
    page = render(Results([sweep]))
    assert message in page
    assert "repeats trial 0 with seed 101" in page
    assert SweepViews(sweep)._answer()[-1].text.endswith(message)
    assert message not in as_markdown(results)


def test_weights_in_an_object_store_are_named_and_lost_ones_are_not(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=1, items=4).write(tmp_path))
    [record] = ledger.trials()
    for written, told in (("s3://bucket/weights", "s3://bucket/weights"), ("/gone", None)):
        ledger.write_trial(record.model_copy(update={"weights_dir": written}))
        assert answer(Results(open_sweeps([tmp_path]))).weights == told
