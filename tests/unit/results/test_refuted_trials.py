"""What repeats with other seeds refute or leave open, wherever the best trials are told of."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats
from builders import change_config, repeat_of, with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.conclusions.comparisons import (
    best_of_sweeps,
    full_against_lora,
    recommended_against_base,
)
from analysis.export.model_card import _why
from analysis.paper_table import paper_table
from analysis.report.answer import answer
from analysis.report.formats import as_markdown
from analysis.report.page import render
from analysis.report.rank_section import rank_figure
from analysis.report.trade_off_section import hypervolume_figure, trade_off_figure
from analysis.results.default_selection import notable_trials
from analysis.results.formatting import points
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MEAN,
    FORGETTING_NLL,
    FORGETTING_POSITIVE,
    GPU_HOURS,
    IN_DOMAIN_ACC,
    KL_BASE_TO_TUNED,
    RETENTION_RATIO,
    TRAIN_SECONDS,
    VALIDATION_LOSS,
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
    return next(g for g in results.lora_groups() if len(g.trials) > 1 and taken not in g.trials)


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
    inspected = notable_trials(results.goals, results.sweeps[0].trials)
    assert after.best.number in inspected
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


def test_a_sweeps_best_is_what_it_recommends_with_the_repeats_that_it_asks_for_itself(tmp_path):
    folders = [
        SyntheticSweep(trials=12, items=20, name=name).write(tmp_path / name)
        for name in ("one", "other")
    ]
    other, ledger = folders[1], Ledger(folders[1])
    change_config(ledger, confirm={"top_k": 2, "seeds": 1})
    alone = opened(other)
    first = alone.recommendation.trial
    second = next(r for r in alone.front if r is not first)
    for _ in range(2):
        repeat(other, first, {IN_DOMAIN_ACC: 0.1, FORGETTING_MEAN: 0.4})
    repeat(other, second, {IN_DOMAIN_ACC: 0.9, FORGETTING_MEAN: 0.0})
    assert opened(other).recommendation.trial.number == second.number
    results = opened(*folders)
    assert results.sweep(results.recommendation.trial).title == "one"
    best = results.nearest_to_ideal(results.of(results.sweeps[1], results.complete))
    assert best.number == second.number


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
    _, *bests = rank_figure(results).charts[0].data
    told = [text for trace in bests for text in trace["text"] if "breaks a constraint" in text]
    assert len(told) == 1
    assert "LoRA, rank 4," in told[0]


@pytest.mark.parametrize("constraints", [(), BOUND])
def test_a_trial_that_diverged_with_another_seed_is_not_said_to_break_a_constraint(
    tmp_path, constraints
):
    folder = SyntheticSweep(trials=12, items=20, constraints=constraints).write(tmp_path)
    for record in opened(folder).complete:
        repeat(folder, record, {}, DIVERGED)
    results = opened(folder)
    assert results.recommendation.feasible
    assert all(row.is_feasible for row in paper_table(results).rows)
    assert "breaks a constraint" not in render(results)


@pytest.mark.parametrize("apart", [0.01, 0.2])
def test_a_gain_or_forgetting_that_its_repeats_do_not_have_is_not_shown(tmp_path, apart):
    """No interval over them ends beyond what a difference of accuracies can be."""
    folder = SyntheticSweep(trials=1, items=200, full_every=0, seed=1).write(tmp_path)
    before = opened(folder)
    [trial], base = before.complete, before.base.metrics[IN_DOMAIN_ACC]
    assert [c.verdict for c in recommended_against_base(before)] == ["shown", "shown"]
    for by in (-apart, apart):
        repeat(folder, trial, {IN_DOMAIN_ACC: base + by, FORGETTING_MEAN: by})
    gain, loss = recommended_against_base(opened(folder))
    assert (gain.verdict, loss.verdict) == ("open", "open")
    assert gain.statement.startswith("That the recommended trial gains ")
    assert loss.statement.startswith("That this run forgets ")
    for told in (gain, loss):
        assert told.statement.endswith(" is not confirmed by repeats with other seeds.")
    half = 100 * min(1.0, apart * scipy.stats.t.ppf(0.975, 1))
    for told in (gain, loss):
        assert f"; over seeds -{half:.1f} to +{half:.1f} points, n = 2 repeats" in told.evidence


def test_a_gain_is_shown_where_repeats_agree_and_not_where_one_diverged(tmp_path):
    folder = SyntheticSweep(trials=1, items=200, full_every=0, seed=1).write(tmp_path)
    [trial] = opened(folder).complete
    repeat(folder, trial, {})
    agree = recommended_against_base(opened(folder))
    assert [c.verdict for c in agree] == ["shown", "shown"]
    gained = trial.metric(IN_DOMAIN_ACC) - opened(folder).base.metrics[IN_DOMAIN_ACC]
    assert f"over repeats {points(gained)} points, too few" in agree[0].evidence
    assert agree[0].statement.endswith(f"; in a run with another seed {100 * gained:.1f}.")
    repeat(folder, trial, {}, DIVERGED)
    lost = recommended_against_base(opened(folder))
    assert [c.verdict for c in lost] == ["open", "open"]
    assert all(c.evidence.endswith("; repeats that diverged: 1") for c in lost)


def test_what_is_shown_of_one_run_is_told_with_the_mean_over_its_repeats(tmp_path):
    """Their interval may leave out what the run forgets."""
    folder = SyntheticSweep(trials=1, items=200, full_every=0, seed=1).write(tmp_path)
    [trial] = opened(folder).complete
    own = trial.metric(FORGETTING_MEAN)
    for by in (-0.002, 0.0, 0.002):
        repeat(folder, trial, {FORGETTING_MEAN: own / 2 + by})
    _, loss = recommended_against_base(opened(folder))
    assert loss.verdict == "shown"
    assert loss.statement == (
        f"This run forgets {100 * own:.1f} points on the retention tasks; over 3 runs with other "
        f"seeds {50 * own:.1f} on average."
    )
    told = as_markdown(opened(folder))
    assert "- forgetting **" in told
    assert "(95 % over items: " in told
    assert "<dd>95 % over items: " in render(opened(folder))


def test_how_a_constraint_without_an_interval_over_items_is_known_to_be_kept(tmp_path):
    bound = ({"metric": KL_BASE_TO_TUNED, "operator": "<=", "bound": 2.0},)
    folder = SyntheticSweep(trials=1, constraints=bound).write(tmp_path)
    [trial] = opened(folder).complete
    kept = f"That it keeps {KL_BASE_TO_TUNED} <= 2 is "
    assert f"{kept}as measured, without an interval." in answer(opened(folder)).reason
    repeat(folder, trial, {KL_BASE_TO_TUNED: 1.0})
    told = answer(opened(folder)).reason
    assert f"{kept}told by the mean over its repeats, without an interval." in told
    repeat(folder, trial, {KL_BASE_TO_TUNED: 1.5})
    undecided = f"Its repeats do not decide whether it truly keeps {KL_BASE_TO_TUNED} <= 2."
    told = answer(opened(folder)).reason
    assert told.endswith(undecided)
    repeat(folder, trial, {KL_BASE_TO_TUNED: 1.25})
    told = answer(opened(folder)).reason
    assert kept not in told
    assert undecided not in told


def test_a_constraint_that_the_mean_keeps_is_undecided_where_the_repeats_are_apart(tmp_path):
    bound = ({"metric": FORGETTING_MEAN, "operator": "<=", "bound": 0.9},)
    folder = SyntheticSweep(trials=1, items=200, constraints=bound).write(tmp_path)
    [trial] = opened(folder).complete
    told = f"Its repeats do not decide whether it truly keeps {FORGETTING_MEAN} <= 0.9."
    for value in (0.1, 0.8):
        assert told not in answer(opened(folder)).reason
        repeat(folder, trial, {FORGETTING_MEAN: value})
    assert told in answer(opened(folder)).reason


def test_where_neither_items_nor_repeats_decide_a_constraint_one_sentence_says_so(tmp_path):
    sweep = SyntheticSweep(trials=1, items=8)
    [trial] = opened(sweep.write(tmp_path / "free")).complete
    own = trial.metric(FORGETTING_MEAN)
    bound = {"metric": FORGETTING_MEAN, "operator": "<=", "bound": own}
    folder = replace(sweep, constraints=(bound,)).write(tmp_path / "bounded")
    for by in (-0.2, 0.1):
        repeat(folder, trial, {FORGETTING_MEAN: own + by})
    told = answer(opened(folder)).reason
    whether = f"decide whether it truly keeps {FORGETTING_MEAN} <= {own:g}."
    assert told.endswith(f" Neither its items nor its repeats {whether}")
    assert "do not decide" not in told


def test_repeats_that_are_too_few_to_decide_may_yet_contradict_a_constraint(tmp_path):
    folder = SyntheticSweep(trials=12, items=200, constraints=BOUND).write(tmp_path)
    results = opened(folder)
    taken = results.recommendation.trial
    other = next(record for record in results.complete if record is not taken)
    for trial, count in ((taken, 2), (other, 3)):
        for _ in range(count):
            repeat(folder, trial, {FORGETTING_MEAN: 0.6})
    found = answer(opened(folder))
    assert (found.trial_id, found.is_feasible) == (taken.config.trial_id, True)
    told = f" The whole interval over its repeats breaks {FORGETTING_MEAN} <= 0.5."
    assert found.reason.endswith(told)


def test_of_trials_that_break_a_constraint_one_whose_repeats_keep_it_is_the_best(tmp_path):
    tight = ({"metric": FORGETTING_MEAN, "operator": "<=", "bound": -0.5},)
    folder = SyntheticSweep(trials=12, items=20, constraints=tight).write(tmp_path)
    group = group_of_several(opened(folder))
    other = next(record for record in group.trials if record is not group.best)
    repeat(folder, other, {FORGETTING_MEAN: -0.6})
    results = opened(folder)
    assert results.nearest_to_ideal(group.trials).number == other.number


def test_an_interval_over_seeds_ends_where_the_values_of_its_metric_do(tmp_path):
    folder = SyntheticSweep(trials=1).write(tmp_path)
    [trial] = opened(folder).complete
    amounts = (KL_BASE_TO_TUNED, TRAIN_SECONDS, GPU_HOURS, VALIDATION_LOSS)
    ends = dict.fromkeys(amounts, (0, math.inf)) | {
        FORGETTING_POSITIVE: (0, 1),
        FORGETTING_MEAN: (-1, 1),
        FORGETTING_NLL: (-math.inf, math.inf),
        RETENTION_RATIO: (-math.inf, math.inf),
    }
    for value in (0.1, 0.9):
        repeat(folder, trial, dict.fromkeys(ends, value))
    results = opened(folder)
    half = 0.4 * scipy.stats.t.ppf(0.975, 1)
    for metric, (least, greatest) in ends.items():
        found = results.over_seeds(trial, metric)
        limits = max(0.5 - half, least), min(0.5 + half, greatest)
        assert (found.low, found.high) == pytest.approx(limits), metric


def test_where_no_trial_keeps_the_constraints_none_is_said_to_be_recommended(tmp_path):
    broken = ({"metric": FORGETTING_MEAN, "operator": "<=", "bound": -0.5},)
    folder = SyntheticSweep(trials=4, constraints=broken).write(tmp_path)
    results = opened(folder)
    taken = results.recommendation.trial.number
    assert "The nearest trial" in recommended_against_base(results)[0].statement
    figure = trade_off_figure(results)
    assert "nearest" in [key.name for key in figure.legend]
    assert figure.charts[0].says.endswith("the base as a star, the nearest one circled.")
    page = render(results)
    assert f"The nearest is trial {taken}. " in page
    assert "Take trial" not in page
    other = next(r for r in results.complete if r.number != taken)
    [sweep] = results.sweeps
    card = _why(other, sweep.settings, sweep.recommendation)
    assert card.endswith(f"chosen by hand; trial {taken} came nearest.")


def test_the_front_is_said_to_hold_a_trial_that_a_repeat_refuted(tmp_path):
    folder = SyntheticSweep(trials=12, items=20, constraints=BOUND).write(tmp_path)
    before = opened(folder)
    assert "each by its own run" not in trade_off_figure(before).caption
    for record in before.complete:
        repeat(folder, record, {FORGETTING_MEAN: 0.6})
    results = opened(folder)
    assert not results.recommendation.feasible
    assert "no trial keeps every constraint" in results.recommendation.reason
    numbers = ", ".join(str(record.number) for record in results.front)
    s = "s" if len(results.front) > 1 else ""
    told = (
        f", each by its own run; in the mean over other seeds trial{s} {numbers} broke a constraint"
    )
    assert told in trade_off_figure(results).caption
    assert told in html.unescape(render(results))


def test_the_report_names_the_trial_whose_repeats_alone_keep_a_constraint(tmp_path):
    tight = ({"metric": FORGETTING_MEAN, "operator": "<=", "bound": -0.5},)
    folder = SyntheticSweep(trials=12, items=20, constraints=tight).write(tmp_path)
    before = opened(folder)
    assert not before.recommendation.feasible
    other = next(r for r in before.complete if r is not before.recommendation.trial)
    repeat(folder, other, {FORGETTING_MEAN: -0.6})
    results = opened(folder)
    assert (results.recommendation.trial.number, results.recommendation.feasible) == (
        other.number,
        True,
    )
    kept = [row.trial for row in paper_table(results).rows[1:] if row.is_feasible]
    assert kept == [other.number]
    page = render(results)
    assert f"Take trial {other.number}. " in page
    assert "No trial keeps" not in page
    assert "0 ringed" not in page
    assert "of two or more with its 95 % interval" in as_markdown(results)
    for figure in (trade_off_figure(results), hypervolume_figure(results)):
        assert "No run of the search keeps every constraint, so there is no front" in figure.caption
    broken = f"{FORGETTING_MEAN} <= -0.5"
    assert answer(results).reason.endswith(
        f" The whole interval over its items breaks {broken}. "
        f"That it keeps {broken} is told by the mean over its repeats, without an interval."
    )
    repeat(folder, other, {FORGETTING_MEAN: -0.6})
    found = answer(opened(folder)).reason
    assert found.endswith(f" The whole interval over its items breaks {broken}.")
    assert other.number in notable_trials(results.goals, results.sweeps[0].trials)
