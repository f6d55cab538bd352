"""Trials that repeats with other seeds refuted, wherever the best of several is named or judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.conclusions.comparisons import best_of_sweeps, full_against_lora
from analysis.paper_table import paper_table
from analysis.report.ranks import rank_figure
from analysis.results import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC
from trainables.results.ledger import Ledger
from trainables.results.records import TrialRecord, TrialStatus

BOUND = ({"metric": FORGETTING_MEAN, "operator": "<=", "bound": 0.5},)
DIVERGED = TrialStatus.DIVERGED


def repeat(
    folder: Path,
    of: TrialRecord,
    metrics: Mapping[str, float],
    status: TrialStatus = TrialStatus.COMPLETE,
) -> None:
    """One more run of a trial's point with another seed; what is not given is as of the trial."""
    ledger = Ledger(folder)
    number = 100 + len(ledger.trials())
    own = {"number": number, "trial_id": f"{of.config.trial_id}-{number}", "seed": number}
    update = {"config": of.config.model_copy(update=own), "confirms": of.number, "status": status}
    last = of.last.model_copy(update={"metrics": {**of.last.metrics, **metrics}})
    ledger.write_trial(of.model_copy(update={**update, "last": last}))


def opened(*folders: Path) -> Results:
    return Results(open_sweeps(list(folders)))


def group_of_several(results: Results):
    """A rank with several trials of which the recommended one is none."""
    taken = results.recommendation.trial
    return next(g for g in results.lora_groups() if len(g.trials) > 1 and taken not in g.trials)


@pytest.mark.parametrize(
    ("metrics", "status"),
    [({}, DIVERGED), ({FORGETTING_MEAN: 0.6}, TrialStatus.COMPLETE)],
)
def test_a_trial_that_repeats_refuted_is_not_the_best_of_its_rank(tmp_path, metrics, status):
    folder = SyntheticSweep(trials=12, items=20, constraints=BOUND).write(tmp_path)
    group = group_of_several(opened(folder))
    repeat(folder, group.best, metrics, status)
    after = next(g for g in opened(folder).groups if g.label == group.label)
    assert after.best.number != group.best.number
    for record in group.trials:
        if record is not group.best:
            repeat(folder, record, metrics, status)
    after = next(g for g in opened(folder).groups if g.label == group.label)
    assert after.best.number == group.best.number  # as none is left


def test_sweeps_that_are_alike_are_compared_by_the_same_trial(tmp_path):
    folders = [
        SyntheticSweep(trials=12, items=20, name=name).write(tmp_path / name)
        for name in ("one", "other")
    ]
    for folder in folders:
        alone = opened(folder)
        first = alone.recommendation.trial
        second = next(r for r in alone.front if r is not first)
        repeat(folder, first, {IN_DOMAIN_ACC: 0.1, FORGETTING_MEAN: 0.4})
        repeat(folder, second, {IN_DOMAIN_ACC: 0.9, FORGETTING_MEAN: 0.0})
    results = opened(*folders)
    best = [results.nearest_to_ideal(results.of(s, results.complete)) for s in results.sweeps]
    assert {record.number for record in best} == {results.recommendation.trial.number}
    assert best[0].number == second.number
    told = best_of_sweeps(results)
    assert told
    assert all(c.statement.count(f"trial {second.number}, ") == 2 for c in told)


def test_a_constraint_that_repeats_break_is_said_to_be_broken(tmp_path):
    folder = SyntheticSweep(trials=12, items=20, constraints=BOUND).write(tmp_path)
    before = opened(folder)
    for record in before.complete:
        if record.rank in (None, 4):
            repeat(folder, record, {FORGETTING_MEAN: 0.6})
    results = opened(folder)
    rows = {row.label: row.is_feasible for row in paper_table(results).rows}
    assert {label for label, keeps in rows.items() if not keeps} == {
        "full fine-tuning",
        "LoRA, rank 4",
    }
    full = [c.statement for c in full_against_lora(results, results.sweeps[0])]
    assert full
    assert all("which breaks a constraint" in told for told in full)
    [line] = [t for t in rank_figure(results).charts[0].data if t["mode"] == "lines+markers"]
    assert [text.endswith("breaks a constraint") for text in line["text"]] == [
        group.rank == 4 for group in results.lora_groups()
    ]


def test_a_trial_that_diverged_with_another_seed_breaks_no_constraint_where_there_are_none(
    tmp_path,
):
    folder = SyntheticSweep(trials=12, items=20).write(tmp_path)
    for record in opened(folder).complete:
        repeat(folder, record, {}, DIVERGED)
    results = opened(folder)
    assert all(row.is_feasible for row in paper_table(results).rows)
    bound = SyntheticSweep(trials=12, items=20, constraints=BOUND).write(tmp_path / "bound")
    for record in opened(bound).complete:
        repeat(bound, record, {}, DIVERGED)
    assert not any(row.is_feasible for row in paper_table(opened(bound)).rows if row.trial)
