"""A sweep without in-domain tasks: the validation loss tells what is learned of the domain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import scipy.stats
from builders import change_base, repeat_of
from synthetic_sweep import SyntheticSweep

from analysis.conclusions import conclude
from analysis.paper_table import paper_table
from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    VALIDATION_LOSS,
)
from trainables.records.item_records import write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialRecord, TrialStatus

OBJECTIVES = (
    {"metric": VALIDATION_LOSS, "mode": "min"},
    {"metric": FORGETTING_MEAN, "mode": "min"},
)


def with_loss(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an evaluation with a validation loss in place of all in-domain scores."""
    kept = {k: v for k, v in metrics.items() if not k.startswith(("in_domain/", "ood/gap"))}
    accuracy = metrics.get(IN_DOMAIN_ACC)
    return kept if accuracy is None else kept | {VALIDATION_LOSS: 2.5 - 2 * accuracy}


def evaluated(one: Measurement) -> Measurement:
    return one.model_copy(update={"metrics": with_loss(one.metrics)})


def write(folder: Path, **fields) -> Ledger:
    ledger = Ledger(SyntheticSweep(objectives=OBJECTIVES, **fields).write(folder))
    base = ledger.base()
    scores = {task: s for task, s in base.scores.items() if s.role != "in_domain"}
    change_base(ledger, scores=scores, metrics=with_loss(base.metrics))
    items = ledger.base_items()
    write_items(ledger.folder.base_items, [item for item in items if item.task in scores])
    for record in ledger.trials():
        history = ledger.measurements(record.number)
        ledger.folder.metrics(record.number).unlink()
        for one in history:
            ledger.append(record.number, evaluated(one))
        ledger.write_trial(record.model_copy(update={"last": evaluated(record.last)}))
    return ledger


def repeat(ledger: Ledger, of: TrialRecord, number: int, loss: float) -> None:
    record = repeat_of(of, number, {VALIDATION_LOSS: loss})
    ledger.append(number, record.last)
    ledger.write_trial(record)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("sweep")
    write(folder)
    return Results(open_sweeps([folder]))


def test_the_table_has_the_loss_and_its_differences(results):
    table = paper_table(results)
    assert table.summaries == ["validation loss", "OOD", "forgetting"]
    before = results.base.metrics[VALIDATION_LOSS]
    full = next(group.best for group in results.groups if group.capacity is None)
    header, *rows = table.texts()
    assert header[3:6] == ["validation loss", "validation loss Δ base", "validation loss Δ full"]
    for row, group in zip(rows[1:], results.groups, strict=True):
        loss = group.best.metric(VALIDATION_LOSS)
        to_full = loss - full.metric(VALIDATION_LOSS)
        other = "" if group.best is full else f"{to_full + 0.0:+.3f}"
        assert row[3:6] == [f"{loss:.3f}", f"{loss - before:+.3f}", other]


def test_what_is_said_of_the_gain_is_said_of_the_loss(results):
    said = conclude(results)
    trial = results.recommendation.trial
    before, after = results.base.metrics[VALIDATION_LOSS], trial.metric(VALIDATION_LOSS)
    assert said[0].statement == (
        f"The recommended trial lowers the base's validation loss: {before:.3f} to {after:.3f} "
        "nats/token."
    )
    assert said[0].verdict == "open"
    assert "no interval" in said[0].evidence
    assert any(re.search("alidation loss .*with rank", s.statement) for s in said)
    assert not any("in the domain" in s.statement or "suffice" in s.statement for s in said)


def test_repeats_decide_whether_the_loss_is_shown_to_fall(tmp_path):
    ledger = write(tmp_path, trials=1)
    trial = Results(open_sweeps([tmp_path])).recommendation.trial
    losses = (0.9, 1.0, 1.1)
    for number, loss in enumerate(losses, 100):
        repeat(ledger, trial, number, loss)
    shown = conclude(Results(open_sweeps([tmp_path])))[0]
    assert shown.verdict == "shown"
    assert shown.statement.endswith("; over 3 runs with other seeds 1.000 on average.")
    low, high = scipy.stats.t.interval(0.95, 2, 1.0, scipy.stats.sem(losses))
    assert f"over seeds {low:.3f} to {high:.3f} nats/token, n = 3 repeats" in shown.evidence
    ledger.write_trial(repeat_of(trial, 200, {}, TrialStatus.DIVERGED))
    lost = conclude(Results(open_sweeps([tmp_path])))[0]
    assert lost.verdict == "open"
    assert lost.evidence.endswith("repeats that diverged: 1")


def test_a_sweep_without_any_task_has_its_page_too(tmp_path):
    ledger = write(tmp_path, trials=8)
    losses = {VALIDATION_LOSS: ledger.base().metrics[VALIDATION_LOSS]}
    change_base(ledger, scores={}, metrics=losses)
    write_items(ledger.folder.base_items, [])
    page = render(Results(open_sweeps([tmp_path])))
    assert 'aria-label="Recipes and capacities"' in page
    assert 'aria-label="Accuracy by task"' not in page
