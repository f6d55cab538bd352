"""The answer beside the page: in JSON, in Markdown, and in the table of every trial."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from statistics import fmean

import pytest
from builders import repeat_of
from synthetic_sweep import SyntheticSweep

from analysis.report.answer import answer
from analysis.report.formats import as_json, as_markdown
from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from analysis.tracking.wandb_views import SweepViews
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, KL_BASE_TO_TUNED
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


def test_the_json_has_what_repeats_came_to_the_front_and_what_is_still_to_come(results):
    document, [trial] = json.loads(as_json(results)), results.complete
    found = document["answer"]
    assert (found["repeats"], found["repeats_diverged"]) == (3, 1)
    assert found["over_seeds"][IN_DOMAIN_ACC] == asdict(results.over_seeds(trial, IN_DOMAIN_ACC))
    assert found["over_seeds"][IN_DOMAIN_ACC]["estimate"] == pytest.approx(fmean((0.7, 0.6)))
    assert found["over_seeds"][KL_BASE_TO_TUNED]["estimate"] == pytest.approx(1.5)
    assert document["front"] == [trial.config.trial_id]
    assert document["bases"] == {"synthetic": results.base.metrics}
    assert document["unfinished"] == {"synthetic": results.sweeps[0].unfinished}
    assert document["trial_hours"] == pytest.approx(4 * 60 / 3600)
    assert document["gpu_hours"] == pytest.approx(4 * 100 / 3600)


def test_what_tells_the_answer_tells_how_many_repeats_it_lacks(results, tmp_path):
    """Whatever ends the search, and wherever the answer is told."""
    told = "Missing: 2 of 5 repeats with other seeds, not run to their end."
    copy = shutil.copytree(results.sweeps[0].ledger.folder.root, tmp_path / "sweep")
    record = json.loads((copy / "sweep.json").read_text())
    record["config"]["confirm"] = {"top_k": 1, "seeds": 5}
    record["config"]["budget"]["hours"] = 1
    (copy / "sweep.json").write_text(json.dumps(record))
    [chosen, *_] = Ledger(copy).trials()
    Ledger(copy).write_trial(repeat_of(chosen, 103, {}, TrialStatus.FAILED))
    [sweep] = open_sweeps(copy)
    assert json.loads(as_json(Results([sweep])))["reason"].endswith(told)
    assert told in as_markdown(Results([sweep]))
    assert told in render(Results([sweep]))
    assert SweepViews(sweep)._answer()[-1].text.endswith(told)
    assert told not in as_markdown(results)
    other = SyntheticSweep(trials=1, full_every=1, name="another").write(tmp_path / "another")
    both = as_markdown(Results(open_sweeps([copy, other])))
    assert both.count("Missing: ") == 1
    assert told.replace("seeds", "seeds of synthetic") in both


def test_the_table_of_every_trial_has_what_each_measured_and_what_it_repeats(results):
    table = render(results).partition('aria-label="Every trial"')[2].partition("</table>")[0]
    rows = re.findall(
        r"<tr( class=\"recommended\")?><th scope=\"row\">(.*?)</tr>", table, re.DOTALL
    )
    assert [bool(mark) for mark, _ in rows] == [True, False, False, False]
    told = [re.sub(r"<[^>]+>", " ", row) for _, row in rows]
    assert [text.split("  ")[0].strip() for text in told] == [
        "trial 0 *", "trial 100", "trial 101", "trial 102",
    ]  # fmt: skip
    for text, record in zip(told, results.sweeps[0].trials, strict=True):
        assert f" {record.metric(IN_DOMAIN_ACC):.3f} " in text
        assert f" {record.metric(FORGETTING_MEAN):+.3f} " in text
    assert "repeats trial 0 with seed 101" in told[2]
    assert told[3].strip().endswith("diverged")


def test_weights_that_are_not_here_are_where_the_sweep_wrote_them_if_that_is_a_store(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=1, items=4).write(tmp_path))
    [record] = ledger.trials()
    for written, told in (("s3://bucket/weights", "s3://bucket/weights"), ("/gone", None)):
        ledger.write_trial(record.model_copy(update={"weights_dir": written}))
        assert answer(Results(open_sweeps([tmp_path]))).weights == told
