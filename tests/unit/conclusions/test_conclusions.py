"""Sentences and tables that are derived from the data: right where it decides, silent elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import scipy.stats
from builders import adapter, repeat_of, with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.conclusions import conclude
from analysis.conclusions.comparisons import (
    best_of_recipes,
    recommended_against_base,
)
from analysis.conclusions.conclusion import p_text
from analysis.conclusions.difference import Subject, state_difference
from analysis.item_comparison import Comparison
from analysis.paper_table import Cell, cell_text, paper_table
from analysis.report.answer import _range
from analysis.report.capacity_section import capacity_figure
from analysis.shown_sweeps import Results
from analysis.stats.intervals import Interval, over_items
from analysis.stats.significance import holm
from analysis.sweeps import open_sweeps
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, MAX_RESERVED, OOD_ACC
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus


def results_of(folder, **sweep) -> Results:
    return Results(open_sweeps([SyntheticSweep(**sweep).write(folder)]))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return results_of(tmp_path_factory.mktemp("sweep"), trials=40, items=120)


def statements(results: Results) -> dict[str, str]:
    return {c.statement: c.verdict for c in conclude(results)}


def found(results: Results, start: str):
    return next(c for c in conclude(results) if c.statement.startswith(start))


def test_the_best_of_trials_that_all_break_a_constraint_is_said_to(tmp_path):
    bound = {"metric": MAX_RESERVED, "operator": "<=", "bound": 1.0}  # full fine-tuning takes 1.4
    told = statements(results_of(tmp_path, trials=8, items=10, constraints=(bound,)))
    full = [statement for statement in told if statement.startswith("Full fine-tuning")]
    assert len(full) == 3
    assert all(", which breaks a constraint) " in statement for statement in full)


def test_a_trend_of_trials_that_early_stopping_left_is_open(tmp_path):
    stopped = {n: TrialStatus.STOPPED_EARLY for n in range(60) if n % 6 == 1}
    results = results_of(tmp_path, trials=60, failures=stopped)
    trend = found(results, "Forgetting rises with learning rate x scale")
    assert trend.verdict == "open"
    assert "among the trials that ran to their end" in trend.statement
    more = "; 10 more trials were stopped early by their scores"
    suffices = next(c for c in conclude(results) if "suffice" in c.statement)
    assert all(one.evidence.endswith(more) for one in (trend, suffices))
    assert more in capacity_figure(results).caption


def trend_of_forgetting(
    folder,
    trials: Sequence[tuple[int, float, float]],
    start: str = "Forgetting rises with rank at equal learning",
):
    """Of trials of these ranks, learning rates and values of forgetting."""
    ledger = Ledger(SyntheticSweep(trials=len(trials), items=4, full_every=0).write(folder))
    for record, (rank, rate, forgetting) in zip(ledger.trials(), trials, strict=True):
        method = adapter(rank=rank)
        config = record.config.model_copy(update={"method": method, "learning_rate": rate})
        metrics = {**record.last.metrics, FORGETTING_MEAN: forgetting}
        ledger.write_trial(with_metrics(record, metrics, config=config))
    return found(Results(open_sweeps([folder])), start)


def test_a_trend_over_capacities_is_seen_beside_what_learning_rates_do(tmp_path):
    grid = itertools.product(range(6), range(5))
    trials = [(8 * 2**r, 1e-5 * 2**place, 0.1 * place + 0.004 * r) for place, r in grid]
    trend = trend_of_forgetting(tmp_path, trials)
    assert trend.verdict == "shown"
    assert "partial Spearman's rho 1.00 given the learning rate, p < 0.001" in trend.evidence


NOT_CONFIRMED = " in the domain is not confirmed by repeats with other seeds."


@pytest.mark.parametrize(
    ("of_lora", "told"),
    [
        ((), "gains less"),  # its run is 0.2 above the others' mean, and they spread by 0.015
        ((0.4, 0.45, 0.42), "gains less"),
        ((0.1, 0.6, 0.4), NOT_CONFIRMED),
        ((0.4, 0.45, None), NOT_CONFIRMED),
        ((0.1,), NOT_CONFIRMED),
    ],
)
def test_two_runs_that_differ_show_nothing_of_methods_whose_repeats_do_not(tmp_path, of_lora, told):
    ledger = Ledger(SyntheticSweep(trials=2, full_every=2, items=120).write(tmp_path))
    full, lora = ledger.trials()
    assert full.metric(IN_DOMAIN_ACC) < lora.metric(IN_DOMAIN_ACC) - 0.15
    for trial, values in ((full, (0.2, 0.23, 0.21)), (lora, of_lora)):
        for index, value in enumerate(values):
            number = 100 + 10 * trial.number + index
            status = TrialStatus.DIVERGED if value is None else TrialStatus.COMPLETE
            write_repeat(ledger, trial, number, value or 0.0, status)
    results = Results(open_sweeps([tmp_path]))
    [conclusion] = [
        c
        for c in conclude(results)
        if "ull fine-tuning at its best" in c.statement and "in the domain" in c.statement
    ]
    assert told in conclusion.statement
    assert conclusion.verdict == ("open" if told == NOT_CONFIRMED else "shown")
    assert (", n = 6 repeats" in conclusion.evidence) == (len(of_lora) == 3 and None not in of_lora)
    assert ("; repeats that diverged: 1" in conclusion.evidence) == (None in of_lora)
    assert ("over 3 runs of one of them with other" in conclusion.statement) == (not of_lora)


def test_the_lead_of_a_run_that_was_picked_and_never_repeated_is_open(tmp_path):
    """The best of several seems better than it is; that it is worse is shown all the same."""
    ledger = Ledger(SyntheticSweep(trials=3, full_every=3, items=120).write(tmp_path))
    full, *_ = ledger.trials()
    for number, value in enumerate((0.2, 0.23, 0.21), 100):
        write_repeat(ledger, full, number, value)
    results = Results(open_sweeps([tmp_path]))
    [told] = [
        c for c in best_of_recipes(results, results.sweeps[0]) if "in the domain" in c.statement
    ]
    assert told.verdict == "open"
    assert told.statement.startswith("In one run of each, full fine-tuning at its best")
    assert told.statement.endswith("(`confirm`).")
    assert "n = 3 repeats of one, for a run of the other, which was picked" in told.evidence
    picked = results.nearest_to_ideal(results.recipe_trials("lora", results.sweeps[0]))
    for number, value in enumerate((0.4, 0.43, 0.41), 200):
        write_repeat(ledger, picked, number, value)
    results = Results(open_sweeps([tmp_path]))
    assert [c.verdict for c in best_of_recipes(results, results.sweeps[0])][1] == "shown"


def test_the_table_has_the_base_each_rank_and_full_sft_with_their_own_values(results):
    table = paper_table(results)
    assert [row.label for row in table.rows] == ["base", *(g.label for g in results.groups)]
    assert table.summaries == ["in-domain", "OOD", "forgetting"]
    assert [*table.summaries, *table.tasks] == list(table.roles)
    for row, group in zip(table.rows[1:], results.groups, strict=True):
        assert row.trial == group.best.number
        assert row.cells["in-domain"].value == group.best.metric(IN_DOMAIN_ACC)
        assert row.cells["OOD"].value == group.best.metric(OOD_ACC)
        forgetting = row.cells["forgetting"]
        assert forgetting.value == group.best.metric(FORGETTING_MEAN)
        interval = forgetting.to_base.difference
        assert interval.estimate == pytest.approx(forgetting.value)
        assert interval.low <= forgetting.value <= interval.high


@pytest.mark.parametrize(("other", "mark"), [("to_base", "*"), ("to_reference", "†")])
def test_marks_are_mcnemars_test_adjusted_for_the_picks_and_over_the_table(results, other, mark):
    table, full = paper_table(results), results.reference(results.sweeps[0])
    cells = [(r, n) for r in table.rows for n, c in r.cells.items() if getattr(c, other)]
    raw = []
    for row, name in cells:
        trial = next(r for r in results.complete if r.number == row.trial)
        tasks = list(results.tasks(table.roles[name])) if name in table.summaries else [name]
        pairs = [pair for task in tasks for pair in results.items.pairs(trial)[task]]
        of_full = [pair for task in tasks for pair in results.items.pairs(full.best)[task]]
        is_base = other == "to_base"
        before = [pair.base.score if is_base else pair.tuned.score for pair in of_full]
        differences = [pair.tuned.score - score for pair, score in zip(pairs, before, strict=True)]
        forgotten, gained = differences.count(-1), differences.count(1)
        n = forgotten + gained
        p_value = scipy.stats.binomtest(forgotten, n).pvalue if n else 1.0
        picks = row.trials * (1 if is_base else full.picked_from)
        raw.append(min(1.0, picks * p_value))
    assert min(raw) < 0.05
    for (row, name), p_value in zip(cells, holm(raw), strict=True):
        assert getattr(row.cells[name], other).p_value == pytest.approx(p_value)
        assert (mark in cell_text(row.cells[name])) == (p_value < 0.05)


def write_repeat(ledger, of, number, value=0.5, status=TrialStatus.COMPLETE):
    """A run of a trial's point with another seed, of this in-domain accuracy."""
    ledger.write_trial(repeat_of(of, number, {IN_DOMAIN_ACC: value}, status))


def test_repeats_give_an_interval_over_seeds_and_are_no_trials_of_their_own(tmp_path):
    folder = SyntheticSweep(trials=8).write(tmp_path)
    ledger = Ledger(folder)
    chosen = Results(open_sweeps([folder])).recommendation.trial
    values = (0.5, 0.6, 0.7)
    for index, value in enumerate(values):
        write_repeat(ledger, chosen, 100 + index, value)
    write_repeat(ledger, chosen, 200, status=TrialStatus.FAILED)
    results = Results(open_sweeps([folder]))
    assert results.recommendation.trial.number == chosen.number
    assert len(results.search_trials) == 8
    seeds = results.over_seeds(chosen, IN_DOMAIN_ACC)
    reference = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (seeds.low, seeds.high) == pytest.approx((reference.low, reference.high))
    row = next(row for row in paper_table(results).rows if row.trial == chosen.number)
    half = (seeds.high - seeds.low) / 2
    told = f"{seeds.estimate:.3f} ± {half:.3f}"
    assert cell_text(row.cells["in-domain"]).endswith(f"({told})")

    other = next(group.best for group in results.groups if chosen not in group.trials)
    for index, value in enumerate((*values, None, None)):
        status = TrialStatus.COMPLETE if value else TrialStatus.DIVERGED
        write_repeat(ledger, other, 300 + index, value or 0.0, status)
    table = paper_table(Results(open_sweeps([folder])))
    row = next(row for row in table.rows if row.trial == other.number)
    assert cell_text(row.cells["in-domain"]).endswith(f"({told}, 2 of 5 diverged)")
    counts = table.frame().set_index(["row", "column"])[["seeds_n", "seeds_diverged"]]
    assert tuple(counts.loc[row.label, "in-domain"]) == (3, 2)


@pytest.mark.parametrize(
    ("low", "high", "told", "kind"),
    [
        (-0.0002, 0.032, "-0.02 to +3.2", "open"),
        (-0.032, -0.00048, "-3.2 to -0.05", "shown"),
        (-1e-17, 0.0005, "+0.0 to +0.1", "open"),  # 0, but for rounding
    ],
)
def test_the_ends_of_an_interval_are_written_on_their_side_of_0(
    low: float, high: float, told: str, kind: str
) -> None:
    """Else "shown" and "open" stand beside the same numbers."""
    interval = Interval((low + high) / 2, low, high, 100)
    comparison = Comparison(interval, "McNemar", 0.001, 30, 1, are_trained=False)
    subject = Subject("It", "it")
    said = state_difference(subject, "gains", comparison, "may not gain", "picked", "the gain")
    assert f"interval of the gain {told} points, n = 100" in said.evidence
    assert said.verdict == kind
    assert _range(interval, FORGETTING_MEAN) == f"{told}, n = 100"


def test_a_mark_needs_an_interval_without_0_as_a_conclusion_does():
    apart, across = (
        Comparison(Interval(-0.1, -0.2, high, 100), "McNemar", 0.001, 30, 1, are_trained=True)
        for high in (-0.05, 0.01)
    )
    assert Cell(0.5, to_base=across, to_reference=apart).marks == "†"
    assert Cell(0.5, to_base=apart, to_reference=across).marks == "*"
    for p_value in (0.05, 0.06):
        assert Cell(0.5, to_base=replace(apart, p_value=p_value), to_reference=apart).marks == "†"


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(0.0496, "p = 0.0496"), (0.0504, "p = 0.05"), (0.0134, "p = 0.013"), (0.00099, "p < 0.001")],
)
def test_a_p_value_is_written_on_its_side_of_the_level(p_value: float, text: str) -> None:
    """Else "shown" and "open" stand beside the same number."""
    assert p_text(p_value) == text


def test_the_evidence_holds_for_all_trials_that_were_picked_from(tmp_path):
    """Those that their scores stopped early are among them."""
    stopped = {n: TrialStatus.STOPPED_EARLY for n in range(40) if n % 4}
    results = results_of(tmp_path, trials=40, items=60, full_every=5, failures=stopped)
    assert len(results.complete) == 10
    for one in recommended_against_base(results):
        assert one.evidence.endswith("; best of 40 trials, picked on these items")
    trial = results.recommendation.trial
    plain, picked = (results.items.compare(trial, None, ["sums"], of) for of in (1, 40))
    assert picked.p_value == pytest.approx(min(1, 40 * plain.p_value))
    differences = results.items.differences(trial, None, ["sums"])
    wide = over_items(*differences, bounds=(-1, 1), level=1 - 0.05 / 40)
    assert (picked.difference.low, picked.difference.high) == pytest.approx((wide.low, wide.high))
