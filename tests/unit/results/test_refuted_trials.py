"""What repeats with other seeds refute or leave open, wherever the best trials are told of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import scipy.stats
from builders import repeat_of, with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.conclusions.comparisons import (
    recommended_against_base,
)
from analysis.export.model_card import _why
from analysis.report.answer import answer
from analysis.report.page import render
from analysis.report.trade_off_section import trade_off_figure
from analysis.results.default_selection import default_selection
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    KL_BASE_TO_TUNED,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus

BOUND = ({"metric": FORGETTING_MEAN, "operator": "<=", "bound": 0.5},)
DIVERGED = TrialStatus.DIVERGED


def repeat(
    folder: Path,
    of: TrialRecord,
    metrics: Mapping[str, float],
    status: TrialStatus = TrialStatus.COMPLETE,
) -> None:
    """One more run of a trial's point with another seed; what is not given is as of the trial.

    What is NaN is not recorded.
    """
    ledger = Ledger(folder)
    record = repeat_of(of, 100 + len(ledger.trials()), metrics, status)
    measured = {k: v for k, v in record.last.metrics.items() if not math.isnan(v)}
    ledger.write_trial(with_metrics(record, measured))


def opened(*folders: Path) -> Results:
    return Results(open_sweeps(list(folders)))


def group_of_several(results: Results):
    """A rank with several trials of which the recommended one is none."""
    taken = results.recommendation.trial
    return next(
        g
        for g in results.sized("lora", results.sweeps[0])
        if len(g.trials) > 1 and taken not in g.trials
    )


@pytest.mark.parametrize(
    ("metrics", "status"),
    [
        ({}, DIVERGED),
        ({FORGETTING_MEAN: 0.6}, TrialStatus.COMPLETE),
        ({IN_DOMAIN_ACC: math.nan}, TrialStatus.COMPLETE),
    ],
)
def test_a_trial_that_repeats_refuted_is_not_the_best_of_its_rank(tmp_path, metrics, status):
    folder = SyntheticSweep(trials=12, items=20, constraints=BOUND).write(tmp_path)
    group = group_of_several(opened(folder))
    repeat(folder, group.best, metrics, status)
    results = opened(folder)
    after = next(g for g in results.groups if g.label == group.label)
    assert after.best.number != group.best.number
    inspected = default_selection(results.goals, results.sweeps[0].trials)
    assert after.best.number in inspected
    for record in group.trials:
        if record is not group.best:
            repeat(folder, record, metrics, status)
    after = next(g for g in opened(folder).groups if g.label == group.label)
    assert after.best.number == group.best.number  # as none is left


def test_a_gain_or_forgetting_without_support_from_repeats_is_open(tmp_path):
    apart = 0.01
    folder = SyntheticSweep(trials=1, items=200, full_every=0, seed=1).write(tmp_path)
    before = opened(folder)
    [trial], base = before.complete, before.base.metrics[IN_DOMAIN_ACC]
    assert [c.verdict for c in recommended_against_base(before)] == ["shown", "shown"]
    for by in (-apart, apart):
        repeat(folder, trial, {IN_DOMAIN_ACC: base + by, FORGETTING_MEAN: by})
    gain, loss = recommended_against_base(opened(folder))
    assert (gain.verdict, loss.verdict) == ("open", "open")
    assert gain.statement.startswith("That the recommended trial gains ")
    assert loss.statement.startswith("That the recommended trial forgets ")
    for told in (gain, loss):
        assert told.statement.endswith(" is not confirmed by repeats with other seeds.")
        half = 100 * apart * scipy.stats.t.ppf(0.975, 1)
        assert f"; over seeds -{half:.1f} to +{half:.1f} points, n = 2 repeats" in told.evidence


def test_how_a_constraint_without_an_interval_over_items_is_known_to_be_kept(tmp_path):
    bound = ({"metric": KL_BASE_TO_TUNED, "operator": "<=", "bound": 2.0},)
    folder = SyntheticSweep(trials=1, constraints=bound).write(tmp_path)
    [trial] = opened(folder).complete
    kept = f"That it keeps {KL_BASE_TO_TUNED} <= 2 is "
    undecided = f"Its repeats do not decide whether it truly keeps {KL_BASE_TO_TUNED} <= 2."
    assert f"{kept}as measured, without an interval." in answer(opened(folder)).reason
    for value, facts in (
        (1.0, (f"{kept}as measured", "without an interval")),
        (1.5, (undecided,)),
    ):
        repeat(folder, trial, {KL_BASE_TO_TUNED: value})
        assert all(fact in answer(opened(folder)).reason for fact in facts)
    repeat(folder, trial, {KL_BASE_TO_TUNED: 1.25})
    reason = answer(opened(folder)).reason
    assert kept not in reason
    assert undecided not in reason


def test_where_no_trial_keeps_the_constraints_none_is_said_to_be_recommended(tmp_path):
    broken = ({"metric": FORGETTING_MEAN, "operator": "<=", "bound": -0.5},)
    folder = SyntheticSweep(trials=4, constraints=broken).write(tmp_path)
    results = opened(folder)
    taken = results.recommendation.trial.number
    assert "The nearest trial" in recommended_against_base(results)[0].statement
    figure = trade_off_figure(results)
    assert "nearest" in [key.name for key in figure.legend]
    page = render(results)
    assert f"The nearest is trial {taken}. " in page
    assert "Take trial" not in page
    other = next(r for r in results.complete if r.number != taken)
    [sweep] = results.sweeps
    card = _why(other, sweep.settings, sweep.recommendation)
    assert card.endswith(f"chosen by hand; trial {taken} came nearest.")
