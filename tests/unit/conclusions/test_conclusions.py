"""Sentences and tables that are derived from the data: right where it decides, silent elsewhere."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from builders import change_config, repeat_of, with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.conclusions import conclude
from analysis.conclusions.comparisons import (
    _difference,
    full_against_lora,
    recommended_against_base,
)
from analysis.conclusions.conclusion import p_text
from analysis.conclusions.rank_trends import learning_rates
from analysis.conclusions.sufficient_rank import rank_that_suffices
from analysis.item_comparison import Comparison
from analysis.paper_table import Cell, cell_text, paper_table
from analysis.report.answer import _range
from analysis.report.rank_section import rank_figure, rate_figure, step_size_figure
from analysis.report.settings_section import importance_figure
from analysis.results.formatting import points
from analysis.results.sample_size import NEGLIGIBLE
from analysis.shown_sweeps import Results
from analysis.stats.intervals import Interval
from analysis.stats.significance import holm
from analysis.stats.trends import spearman
from analysis.sweeps import open_sweeps
from trainables.config import LoraConfig
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, MAX_RESERVED, OOD_ACC
from trainables.records.item_records import items_file, read_items, write_items
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


def with_in_domain(
    folder, accuracies: dict[int, float | tuple[float, ...]], items: int, **sweep
) -> Results:
    """A sweep of LoRA trials of each rank, right on that share of the in-domain items.

    `accuracies`: of each of the rank's trials, or of four that are alike.
    """
    trials = [
        (rank, accuracy)
        for rank, of_rank in accuracies.items()
        for accuracy in (of_rank if isinstance(of_rank, tuple) else (of_rank,) * 4)
    ]
    SyntheticSweep(trials=len(trials), items=items, full_every=0, **sweep).write(folder)
    ledger = Ledger(folder)
    for record, (rank, accuracy) in zip(ledger.trials(), trials, strict=True):
        file = items_file(ledger.folder.attempt(record.number, 1), record.last.step)
        draw = random.Random(0)  # the same order for every rank, so that higher ones add items
        order = [draw.random() for _ in range(items)]
        own = iter(order)
        scored = [
            item.model_copy(update={"score": float(next(own) < accuracy)})
            if item.task == "sums"
            else item
            for item in read_items(file)
        ]
        write_items(file, scored)
        mean = float(np.mean([place < accuracy for place in order]))
        last = record.last.model_copy(
            update={"metrics": {**record.last.metrics, IN_DOMAIN_ACC: mean}}
        )
        lora = record.config.lora.model_copy(update={"rank": rank})
        config = record.config.model_copy(update={"lora": lora})
        ledger.write_trial(record.model_copy(update={"last": last, "config": config}))
    return Results(open_sweeps([folder]))


def test_the_least_rank_that_no_higher_one_beats_suffices(tmp_path):
    shown = with_in_domain(tmp_path, {1: 0.2, 4: 0.9, 16: 0.9, 64: 0.901}, items=800)
    conclusion = found(shown, "In one run of each, rank")
    assert conclusion.statement.startswith(
        "In one run of each, rank 4 suffices in the domain: the "
    )
    assert conclusion.statement.endswith(
        "over its best; repeats of these with other seeds would tell whether it does."
    )
    assert conclusion.verdict == "open"
    assert conclusion.evidence == (
        "simultaneous 95 % upper bound, n = 800 items, best of 4, 4, 4, 4 trials of ranks "
        "1, 4, 16, 64, picked on these items"
    )


@pytest.mark.parametrize(
    ("least", "highest", "told"),
    [
        ((0.2,), (0.9,) * 4, "In one run of each, rank 4 suffices in the domain"),
        ((0.9,), (0.9,) * 4, "In one run of each, rank 4 suffices in the domain"),
        ((0.2,), (0.9,) * 3, "No rank below 64 is shown to suffice"),
    ],
)
def test_a_rank_suffices_where_it_and_all_above_it_were_tried_often(tmp_path, least, highest, told):
    ranks = {1: least, 4: 0.9, 16: 0.9, 64: highest}
    conclusion = found(with_in_domain(tmp_path, ranks, items=800), told)
    counts = f"best of 1, 4, 4, {len(highest)} trials of ranks 1, 4, 16, 64"
    if len(highest) == 4:
        assert f"{counts}, picked on these items" in conclusion.evidence
    else:
        needed = "; one that suffices and all above it need 4 each"
        assert conclusion.evidence == f"simultaneous 95 % bounds, {counts}{needed}"
        assert conclusion.verdict == "open"


def test_of_a_ranks_trials_those_that_keep_the_constraints_count_in_its_favour(tmp_path):
    bound = {"metric": IN_DOMAIN_ACC, "operator": "<=", "bound": 0.95}  # one of any metric would do
    ranks = {1: 0.2, 4: 0.9, 16: (0.99, 0.9, 0.9, 0.9), 64: 0.9}
    kept = with_in_domain(tmp_path / "a", ranks, items=800, constraints=(bound,))
    assert found(kept, "In one run of each, rank 4 suffices in the domain").verdict == "open"
    broken = with_in_domain(tmp_path / "b", {1: 0.99, 4: 0.9, 16: 0.9}, 800, constraints=(bound,))
    assert "of ranks 1, 4, 16 (none of rank 1 keeps every constraint)" in (
        found(broken, "In one run of each, rank 1 suffices in the domain").evidence
    )


def test_of_a_ranks_trials_those_that_diverged_with_another_seed_count_last(tmp_path):
    ranks = {1: 0.2, 4: 0.9, 16: (0.99, 0.9, 0.9, 0.9), 64: 0.9}
    results = with_in_domain(tmp_path, ranks, items=800)
    lucky = max(results.complete, key=lambda record: record.metric(IN_DOMAIN_ACC))
    assert found(results, "In one run of each, rank 16 suffices in the domain").verdict == "open"
    write_repeat(Ledger(tmp_path), lucky, 100, status=TrialStatus.DIVERGED)
    after = Results(open_sweeps([tmp_path]))
    assert found(after, "In one run of each, rank 4 suffices in the domain").verdict == "open"


@pytest.mark.parametrize(
    ("repeats", "told"),
    [
        ({4: 0.9, 64: 0.92}, "In one run of each, rank 4 suffices"),
        ({4: 0.9, 64: 0.93}, "In one run of each, rank 16 suffices"),
        ({4: 0.9, 1: 0.95}, "Rank 4 suffices"),
        ({4: 0.9, 16: 0.9, 64: 0.91}, "Rank 4 suffices"),
        ({16: 0.9, 64: 0.9}, "In one run of each, rank 4 suffices"),
        ({64: 0.93}, "In one run of each, rank 4 suffices"),
        ({4: 0.87}, "In one run of each, rank 4 suffices"),
    ],
)
def test_a_rank_does_not_suffice_where_repeats_of_a_higher_ones_best_gain_more(
    tmp_path, repeats, told
):
    results = with_in_domain(tmp_path, {1: 0.2, 4: 0.9, 16: 0.9, 64: 0.9}, items=800)
    ledger = Ledger(tmp_path)
    for rank, value in repeats.items():
        best = next(record for record in results.complete if record.rank == rank)
        for number in (100, 101):
            write_repeat(ledger, best, number + rank, value)
    verdict = "shown" if told == "Rank 4 suffices" else "open"
    conclusion = found(Results(open_sweeps([tmp_path])), told)
    assert conclusion.verdict == verdict
    most = conclusion.statement.partition("gains more than ")[2].split()[0]
    assert float(most) <= 100 * NEGLIGIBLE
    if "rank 16" in told:
        best = next(record for record in results.complete if record.rank == 16)
        write_repeat(ledger, best, 300, 0.9)
        conclusion = found(Results(open_sweeps([tmp_path])), "No rank below 64 is shown to suffice")
        refuted = "; repeats with other seeds refute rank 4, 16"
        counts = "best of 4, 4, 4, 4 trials of ranks 1, 4, 16, 64"
        assert conclusion.evidence == f"simultaneous 95 % bounds, {counts}{refuted}"


def test_of_a_rank_that_suffices_the_wider_bound_is_told(tmp_path):
    """One run of each may lie closer than trainings with other seeds do."""
    results = with_in_domain(tmp_path, {1: 0.2, 4: 0.9, 16: 0.9, 64: 0.9}, items=800)
    ledger = Ledger(tmp_path)
    for rank, mean in ((4, 0.881), (16, 0.895), (64, 0.897)):
        best = next(record for record in results.complete if record.rank == rank)
        for number, by in enumerate((-0.001, 0.0, 0.001), 100 + 10 * rank):
            write_repeat(ledger, best, number, mean + by)
    conclusion = found(Results(open_sweeps([tmp_path])), "Rank 4 suffices")
    half = scipy.stats.t.ppf(0.975, 2) * 0.001 / 3**0.5 * 2**0.5  # of a difference of two means
    most = f"{math.ceil(1000 * (0.016 + half)) / 10:.1f} points"
    assert conclusion.verdict == "shown"
    assert f"gains more than {most} over its best." in conclusion.statement
    assert conclusion.evidence.endswith(f"; over seeds at most {most}")


@pytest.mark.parametrize(
    ("of_full", "more"),
    [
        (
            (0.1, 0.1, 0.15),
            " by these items alone; repeats with other seeds agree on a difference",
        ),
        ((0.1, 0.1, 0.9), ""),
        ((0.1, 0.1, 0.15, None), ""),
    ],
)
def test_what_items_do_not_tell_apart_and_repeats_do_is_told(tmp_path, of_full, more):
    """They agree on nothing where their interval has 0 in it, or where one diverged."""
    ledger = Ledger(SyntheticSweep(trials=2, full_every=2, items=20).write(tmp_path))
    full, lora = ledger.trials()
    for trial, values in ((full, of_full), (lora, (0.5, 0.5, 0.55))):
        for number, value in enumerate(values, 100 + 10 * trial.number):
            status = TrialStatus.DIVERGED if value is None else TrialStatus.COMPLETE
            write_repeat(ledger, trial, number, value or 0.0, status)
    results = Results(open_sweeps([tmp_path]))
    told = full_against_lora(results, results.sweeps[0])[1]
    assert told.verdict == "open"
    assert told.statement.endswith(f"cannot be told apart in the domain{more}.")


@pytest.mark.parametrize("of_rank_4", [0.9, (0.99, 0.9, 0.9, 0.9)])
def test_a_rank_does_not_suffice_where_all_its_trials_diverge_with_another_seed(
    tmp_path, of_rank_4
):
    """Not by a trial that breaks a constraint, either, as the others keep it."""
    bound = {"metric": IN_DOMAIN_ACC, "operator": "<=", "bound": 0.95}  # one of any metric would do
    ranks = {1: 0.2, 4: of_rank_4, 16: 0.9, 64: 0.9}
    results = with_in_domain(tmp_path, ranks, items=800, constraints=(bound,))
    for record in [r for r in results.complete if r.rank == 4 and results.keeps_constraints(r)]:
        write_repeat(Ledger(tmp_path), record, 100 + record.number, 0.9, TrialStatus.DIVERGED)
    assert (
        found(Results(open_sweeps([tmp_path])), "In one run of each, rank 16 suffices").verdict
        == "open"
    )


def test_what_repeats_refute_is_not_taken_for_too_few_items(tmp_path):
    """A run that is far above all higher ranks' needs few items, were it not for its repeats."""
    results = with_in_domain(tmp_path, {1: 0.2, 4: 0.95, 16: 0.8, 64: 0.8}, items=150)
    for rank, value in ((4, 0.8), (64, 0.9)):
        best = next(record for record in results.complete if record.rank == rank)
        write_repeat(Ledger(tmp_path), best, 100 + rank, value)
    told = found(Results(open_sweeps([tmp_path])), "No rank below 64 is shown to suffice")
    assert told.evidence.endswith("; repeats with other seeds refute rank 4")


def test_of_trials_that_all_break_a_constraint_one_that_diverged_with_another_seed_is_last(
    tmp_path,
):
    bound = {"metric": MAX_RESERVED, "operator": "<=", "bound": 0.1}
    folder = SyntheticSweep(trials=8, items=10, full_every=0, constraints=(bound,)).write(tmp_path)
    before = Results(open_sweeps([folder]))
    recommended = before.recommendation.trial.number

    def next_best(results: Results) -> int:
        others = [record for record in results.complete if record.number != recommended]
        return results.nearest_to_ideal(others).number

    first = before.complete[next_best(before)]
    write_repeat(Ledger(folder), first, 100, status=TrialStatus.DIVERGED)
    after = Results(open_sweeps([folder]))
    assert after.recommendation.trial.number == recommended
    assert next_best(after) != first.number


def test_the_best_of_trials_that_all_break_a_constraint_is_said_to(tmp_path):
    bound = {"metric": MAX_RESERVED, "operator": "<=", "bound": 1.0}  # full fine-tuning takes 1.4
    told = statements(results_of(tmp_path, trials=8, items=10, constraints=(bound,)))
    full = [statement for statement in told if statement.startswith("Full fine-tuning")]
    assert len(full) == 3
    assert any("cannot be told apart" in statement for statement in full)
    assert all(", which breaks a constraint) " in statement for statement in full)
    assert sum("which breaks" in statement for statement in told) == 3


def test_a_rank_does_not_suffice_where_a_higher_one_gains_or_ranks_or_items_are_too_few(tmp_path):
    gains = with_in_domain(tmp_path / "a", {1: 0.2, 4: 0.6, 16: 0.9}, items=800)
    none = found(gains, "No rank below 16 is shown to suffice")
    assert none.verdict == "open"
    assert none.evidence == "simultaneous 95 % bounds, best of 4, 4, 4 trials of ranks 1, 4, 16"
    z = scipy.stats.norm.isf(0.05 / 2 / 4)  # two ranks below 16, of which each needs four trials
    for name, of_rank_1, of_rank_4 in (("even", 4, 4), ("uneven", 1, 6)):
        ranks = {1: (0.9,) * of_rank_1, 4: (0.9,) * of_rank_4, 16: 0.9}
        few = with_in_domain(tmp_path / name, ranks, items=40)
        too_few = found(few, "Too few items to show to within 2 points that a rank below 16")
        assert too_few.verdict == "too few data"
        assert too_few.evidence == (
            f"n = 40; {math.ceil(z**2 / NEGLIGIBLE)} are needed even if ranks differ in none"
        )
    two = with_in_domain(tmp_path / "c", {1: 0.9, 4: 0.9}, items=40)
    assert found(two, "Too few ranks").verdict == "too few data"
    assert NEGLIGIBLE == 0.02


def test_nothing_is_said_of_ranks_where_the_items_of_one_were_left_out(tmp_path):
    results = results_of(tmp_path, trials=16, items=4, full_every=0)
    assert rank_that_suffices(results, results.sweeps[0])
    ledger = Ledger(tmp_path)
    for record in (record for record in results.complete if record.rank == 64):
        items_file(ledger.folder.attempt(record.number, 1), record.last.step).unlink()
    results = Results(open_sweeps([tmp_path]))
    assert rank_that_suffices(results, results.sweeps[0]) == []


def test_forgetting_follows_learning_rate_times_scale_as_the_sweep_was_made(results):
    conclusion = found(results, "Forgetting rises with learning rate x scale at equal rank.")
    trials = [r for r in results.complete if r.config.lora]
    steps = [r.config.learning_rate * r.config.lora.scaling for r in trials]
    rho = spearman(steps, [r.metric(FORGETTING_MEAN) for r in trials], [r.rank for r in trials])
    assert f"partial Spearman's rho {rho.statistic:.2f} given the rank" in conclusion.evidence
    assert f"n = {len(trials)}" in conclusion.evidence


def test_forgetting_that_rises_with_each_ranks_rate_and_with_the_rank_is_not_said_to_fall(tmp_path):
    """At a fixed alpha the scale falls with the rank: over all ranks together forgetting does."""
    ledger = Ledger(SyntheticSweep(trials=30, items=4, full_every=0).write(tmp_path))
    for record in ledger.trials():
        place, rank = divmod(record.number, 5)
        changes = {
            "lora": LoraConfig(rank=8 * 2**rank, alpha=16),
            "learning_rate": 1e-4 + 1e-5 * place,
        }
        metrics = {**record.last.metrics, FORGETTING_MEAN: 0.01 * place + 0.04 * rank}
        config = record.config.model_copy(update=changes)
        ledger.write_trial(with_metrics(record, metrics, config=config))
    trend = found(Results(open_sweeps([tmp_path])), "Forgetting rises with learning rate x scale")
    assert trend.verdict == "shown"


def test_a_trend_of_trials_that_early_stopping_left_is_open(tmp_path):
    stopped = {n: TrialStatus.STOPPED_EARLY for n in range(60) if n % 6 == 1}
    results = results_of(tmp_path, trials=60, failures=stopped)
    trend = found(results, "Forgetting rises with learning rate x scale")
    assert trend.verdict == "open"
    assert "among the trials that ran to their end" in trend.statement
    more = "; 10 more trials were stopped early by their scores"
    suffices = next(c for c in conclude(results) if "suffice" in c.statement)
    assert all(told.evidence.endswith(more) for told in (trend, suffices))
    figures = rank_figure(results), rate_figure(results), step_size_figure(results)
    assert all(f"{more}. " in f"{figure.caption} " for figure in figures)
    assert more in importance_figure(results).caption


def test_importances_are_not_said_to_be_shares_of_the_metrics_variance(results):
    figure = importance_figure(results)
    assert "sum to 1 even where no setting explains anything" in figure.caption
    assert "relative to the others" in figure.charts[0].title
    assert "variance" not in figure.caption + figure.charts[0].title


def test_where_no_trial_forgets_anything_no_number_is_made_up_for_a_trend(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=16, items=4, full_every=0).write(tmp_path))
    for record in ledger.trials():
        metrics = {**record.last.metrics, FORGETTING_MEAN: 0.0}
        ledger.write_trial(with_metrics(record, metrics))
    told = Results(open_sweeps([tmp_path]))
    for over in ("learning rate x scale at equal rank", "rank at equal learning rate"):
        trend = found(told, f"No trend of forgetting with {over} is shown.")
        assert (trend.evidence, trend.verdict) == (
            "no two trials that compare differ in both, n = 16 LoRA trials",
            "open",
        )


def trend_of_forgetting(
    folder,
    trials: Sequence[tuple[int, float, float]],
    start: str = "Forgetting rises with rank at equal learning",
):
    """Of trials of these ranks, learning rates and values of forgetting."""
    ledger = Ledger(SyntheticSweep(trials=len(trials), items=4, full_every=0).write(folder))
    for record, (rank, rate, forgetting) in zip(ledger.trials(), trials, strict=True):
        lora = record.config.lora.model_copy(update={"rank": rank})
        config = record.config.model_copy(update={"lora": lora, "learning_rate": rate})
        metrics = {**record.last.metrics, FORGETTING_MEAN: forgetting}
        ledger.write_trial(with_metrics(record, metrics, config=config))
    return found(Results(open_sweeps([folder])), start)


def test_a_trend_needs_eight_trials_and_one_over_ranks_three_of_these(tmp_path):
    trials = [(8 * 2 ** (n % 3), 1e-4, 0.1 * (n % 3)) for n in range(8)]
    assert trend_of_forgetting(tmp_path / "a", trials).evidence.endswith("n = 8 LoRA trials")
    by_rate = trend_of_forgetting(tmp_path / "b", trials, "No trend of forgetting with learning")
    assert by_rate.evidence.endswith("n = 8 LoRA trials")
    of_two = [(8 * 2 ** (n % 2), 1e-4, 0.1 * (n % 2)) for n in range(12)]
    for few in (trials[:7], of_two):
        told = "Too few LoRA trials to say whether anything rises or falls with rank"
        conclusion = trend_of_forgetting(tmp_path / str(len(few)), few, told)
        assert conclusion.evidence == f"{len(few)} complete; 8 over 3 ranks are needed"


def test_a_trend_over_ranks_is_seen_beside_what_learning_rates_do(tmp_path):
    grid = itertools.product(range(6), range(5))
    trials = [(8 * 2**r, 1e-5 * 2**place, 0.1 * place + 0.004 * r) for place, r in grid]
    trend = trend_of_forgetting(tmp_path, trials)
    assert trend.verdict == "shown"
    assert "within 6 strata of learning rate, Kendall's tau 1.00" in trend.evidence


def test_a_trend_over_ranks_is_seen_in_few_trials_of_a_learning_rate_each(tmp_path):
    draw = random.Random(0)
    drawn = [(draw.randrange(5), 4 * draw.random()) for _ in range(12)]
    trials = [
        (8 * 2**r, 1e-5 * 2**place, 0.02 * (place + r) + draw.gauss(0, 0.03)) for r, place in drawn
    ]
    trend = trend_of_forgetting(tmp_path, trials)
    assert trend.verdict == "shown"
    ranks, rates, forgetting = map(list, zip(*trials, strict=True))
    rho = spearman(ranks, forgetting, given=rates).statistic
    assert f"partial Spearman's rho {rho:.2f} given the learning rate, p" in trend.evidence


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        (1, "Jonckheere-Terpstra, Kendall's tau"),
        (6, "Jonckheere-Terpstra within 6 strata of learning rate, Kendall's tau"),
        (7, "partial Spearman's rho"),
    ],
)
def test_trials_are_compared_at_the_same_learning_rate_where_two_of_each_share_one(
    tmp_path, rates, told
):
    trials = [(8 * 2 ** (n % 4), 1e-5 * 2 ** (n % rates), 0.1 * (n % 4)) for n in range(12)]
    assert trend_of_forgetting(tmp_path, trials).evidence.startswith(told)


def test_what_is_said_of_the_recommended_trial_is_its_difference_from_the_base(results):
    trial = results.recommendation.trial
    gain = 100 * (trial.metric(IN_DOMAIN_ACC) - results.base.metrics[IN_DOMAIN_ACC])
    assert f"The recommended trial gains {gain:.1f} points in the domain over the base." in (
        statements(results)
    )


def test_a_trial_that_is_worse_in_the_domain_and_better_at_retention_is_said_to_be(tmp_path):
    """Of every four items three went from right to wrong in the domain, and back elsewhere."""
    ledger = Ledger(SyntheticSweep(trials=1, items=40).write(tmp_path))
    [record] = ledger.trials()
    own = items_file(ledger.folder.attempt(record.number, 1), record.last.step)
    for file, in_domain in ((ledger.folder.base_items, 1.0), (own, 0.0)):
        scored = []
        for place, item in enumerate(read_items(file)):
            score = in_domain if item.task == "sums" else 1.0 - in_domain
            scored.append(item.model_copy(update={"score": score if place % 4 else 0.0}))
        write_items(file, scored)
    gain, loss = recommended_against_base(Results(open_sweeps([tmp_path])))
    assert gain.statement == "The recommended trial loses 75.0 points in the domain over the base."
    assert loss.statement == "It gains 75.0 points on the retention tasks."
    assert gain.evidence.startswith("95 % interval of the gain -")
    assert loss.evidence.startswith("95 % interval of forgetting -")
    assert (gain.verdict, loss.verdict) == ("shown", "shown")


def test_equal_trials_cannot_be_told_apart(tmp_path):
    results = results_of(tmp_path, trials=2, full_every=2)
    full, lora = results.sweeps[0].trials
    assert full.config.method == "full"
    ledger = results.sweeps[0].ledger
    source = items_file(ledger.folder.attempt(0, 1), full.last.step)
    write_items(items_file(ledger.folder.attempt(1, 1), lora.last.step), read_items(source))
    told = conclude(Results(open_sweeps([tmp_path])))
    equal = [c for c in told if "cannot be told apart" in c.statement]
    assert len(equal) == 3
    assert all(c.verdict == "open" and c.evidence.startswith("no item differs; ") for c in equal)


NOT_CONFIRMED = " in the domain is not confirmed by repeats with other seeds."
WOULD_TELL = (
    "repeats with other seeds would tell whether it is so of other trainings, too (`confirm`)."
)


@pytest.mark.parametrize(
    ("of_lora", "told"),
    [
        ((), "gains less"),  # its run is 0.2 above the others' mean, and they spread by 0.015
        ((0.4, 0.45, 0.42), "gains less"),
        ((0.1, 0.6, 0.4), NOT_CONFIRMED),
        ((0.1, 0.1, 0.1), NOT_CONFIRMED),
        ((0.4, 0.45, None), NOT_CONFIRMED),
        ((0.4,), "gains less"),
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
    assert conclusion.statement.startswith("That f" if told == NOT_CONFIRMED else "F")
    assert "full fine-tuning minus LoRA, one run of each, -" in conclusion.evidence
    assert (", n = 6 repeats" in conclusion.evidence) == (len(of_lora) == 3 and None not in of_lora)
    assert ("; repeats that diverged: 1" in conclusion.evidence) == (None in of_lora)
    assert "points, too few for an interval" not in conclusion.evidence
    assert conclusion.evidence.endswith("n = 3 repeats of one, for a run of the other") == (
        not of_lora
    )
    assert ("over 3 runs of one of them with other" in conclusion.statement) == (not of_lora)


def test_the_lead_of_a_run_that_was_picked_and_never_repeated_is_open(tmp_path):
    """The best of several seems better than it is; that it is worse is shown all the same."""
    ledger = Ledger(SyntheticSweep(trials=3, full_every=3, items=120).write(tmp_path))
    full, *_ = ledger.trials()
    for number, value in enumerate((0.2, 0.23, 0.21), 100):
        write_repeat(ledger, full, number, value)
    results = Results(open_sweeps([tmp_path]))
    [told] = [
        c for c in full_against_lora(results, results.sweeps[0]) if "in the domain" in c.statement
    ]
    assert told.verdict == "open"
    assert told.statement.endswith(f" in the domain; more {WOULD_TELL}")
    assert "n = 3 repeats of one, for a run of the other, which was picked" in told.evidence
    picked = results.nearest_to_ideal(results.lora)
    for number, value in enumerate((0.4, 0.43, 0.41), 200):
        write_repeat(ledger, picked, number, value)
    results = Results(open_sweeps([tmp_path]))
    assert [c.verdict for c in full_against_lora(results, results.sweeps[0])][1] == "shown"
    for number, record in enumerate(results.complete, 300):
        write_repeat(ledger, record, number, status=TrialStatus.DIVERGED)
    results = Results(open_sweeps([tmp_path]))
    for told in full_against_lora(results, results.sweeps[0]):
        assert "; repeats that diverged: 2; best of 1 full and of 2 LoRA trials" in told.evidence


@pytest.mark.parametrize("is_repeated", [0, 1])
@pytest.mark.parametrize(("accuracy", "forgetting"), [(0.0, 0.9), (1.0, -0.9)])
def test_only_the_better_of_two_may_seem_so_as_it_was_picked(
    tmp_path, is_repeated, accuracy, forgetting
):
    ledger = Ledger(SyntheticSweep(trials=4, full_every=2, items=10).write(tmp_path))
    results = Results(open_sweeps([tmp_path]))
    bests = results.full(results.sweeps[0]).best, results.nearest_to_ideal(results.lora)
    metrics = {IN_DOMAIN_ACC: accuracy, FORGETTING_MEAN: forgetting}
    for number in (100, 101):
        ledger.write_trial(repeat_of(bests[is_repeated], number, metrics))
    results = Results(open_sweeps([tmp_path]))
    for told in full_against_lora(results, results.sweeps[0])[:2]:
        assert "n = 2 repeats of one, for a run of the other" in told.evidence
        assert ("other, which was picked" in told.evidence) == (accuracy == 0)
        assert accuracy == 1 or "agree on a difference" not in told.statement


def test_methods_are_compared_as_of_all_pairs_that_could_have_been_picked(tmp_path):
    results = results_of(tmp_path, trials=4, full_every=2, items=10)
    full, lora = results.full(results.sweeps[0]).best, results.nearest_to_ideal(results.lora)
    [told] = [
        c for c in full_against_lora(results, results.sweeps[0]) if "in the domain" in c.statement
    ]
    alone = results.items.compare(full, lora, list(results.tasks("in_domain")), 1)
    assert 0.001 < 4 * alone.p_value < 1
    assert f"{alone.test} {p_text(4 * alone.p_value)} (Bonferroni)" in told.evidence


def test_two_runs_that_differ_leave_open_whether_their_settings_do(tmp_path):
    """A retraining may change as much: until repeats tell how much, nothing is shown."""
    ledger = Ledger(SyntheticSweep(trials=2, full_every=2, items=120).write(tmp_path))
    full, lora = ledger.trials()
    own = full.metric(IN_DOMAIN_ACC)
    one = f"over repeats of one, without a complete one of the other, {points(own - 0.4)}"
    for more, over, values in (
        ("", None, ()),
        ("more ", one, [(lora, 0.4)]),
        ("more ", "over repeats -20.0", [(lora, 0.4), (full, 0.2)]),
    ):
        for number, (trial, value) in enumerate(values, 100):
            write_repeat(ledger, trial, number, value)
        results = Results(open_sweeps([tmp_path]))
        [told] = [
            c
            for c in full_against_lora(results, results.sweeps[0])
            if "in the domain" in c.statement
        ]
        assert told.verdict == "open"
        size = 100 * (lora.metric(IN_DOMAIN_ACC) - full.metric(IN_DOMAIN_ACC))
        assert told.statement == (
            "In one run of each, full fine-tuning at its best trade-off (trial 0) gains less than "
            f"the best LoRA (trial 1, rank {lora.rank}) by {size:.1f} points in the domain; {more}"
            f"{WOULD_TELL}"
        )
        told_of_repeats = told.evidence.split("; ")[2:]
        assert told_of_repeats == ([f"{over} points, too few for an interval"] if over else [])


@pytest.mark.parametrize(
    ("of_lora", "told"),
    [
        ((0.6, 0.61), "gains less"),
        ((0.6, 0.7), NOT_CONFIRMED),  # of two that differ as much a third may be as low
        ((0, 0), NOT_CONFIRMED),
    ],
)
def test_repeats_of_one_method_alone_may_refute_what_one_run_of_each_shows(tmp_path, of_lora, told):
    """The best three that are repeated are often all LoRA."""
    ledger = Ledger(SyntheticSweep(trials=2, full_every=2, items=120).write(tmp_path))
    full, lora = ledger.trials()
    for index, value in enumerate(of_lora):
        write_repeat(ledger, lora, 100 + index, value)
    results = Results(open_sweeps([tmp_path]))
    [conclusion] = [
        c for c in full_against_lora(results, results.sweeps[0]) if "in the domain" in c.statement
    ]
    assert told in conclusion.statement
    assert conclusion.verdict == ("open" if told == NOT_CONFIRMED else "shown")
    spread = max(abs(of_lora[0] - of_lora[1]) / 2**0.5, 1 / 120 / 12**0.5)  # of a rounded share
    half = scipy.stats.t.ppf(0.975, 1) * spread * (1 + 1 / 2) ** 0.5
    difference = full.metric(IN_DOMAIN_ACC) - sum(of_lora) / 2
    ends = (points(max(difference - half, -1.0)), points(difference + half))
    over = f"over seeds {ends[0]} to {ends[1]} points, n = 2 repeats of one, for a run of the other"
    assert over in conclusion.evidence


@pytest.mark.parametrize(("trials", "is_told"), [(12, False), (16, True)])
def test_learning_rates_are_compared_where_each_method_has_four_trials(tmp_path, trials, is_told):
    results = results_of(tmp_path, trials=trials, items=10)
    told = [s for s in statements(results) if s.startswith("At its best trade-off LoRA's learning")]
    assert bool(told) == is_told
    best = results.nearest_to_ideal(results.lora), results.full(results.sweeps[0]).best
    one, other = (record.config.learning_rate for record in best)
    assert all(f"is {one / other:.2g} times that of full" in statement for statement in told)
    for record in results.lora[3:]:
        stopped = record.model_copy(update={"status": TrialStatus.STOPPED_EARLY})
        Ledger(tmp_path).write_trial(stopped)
    few = Results(open_sweeps([tmp_path]))
    assert learning_rates(few, few.sweeps[0]) == []


@pytest.mark.parametrize(
    ("of_lora", "of_full", "told"),
    [
        ((2e-4, 4e-4, 8e-4), (1e-4, 2e-4), "2.0e-04, the lowest tried|1.0e-04, the lowest tried"),
        ((2e-4, 1e-4, 8e-4), (1e-4, 5e-5), "2.0e-04|1.0e-04, the highest tried"),
        (
            (2e-4, 1e-4, 5e-5),
            (1e-4, 1e-4),
            "2.0e-04, the highest tried|1.0e-04, the only one tried",
        ),
    ],
)
def test_a_learning_rate_at_the_edge_of_what_was_tried_is_said_to_be(
    tmp_path, of_lora, of_full, told
):
    ledger = Ledger(SyntheticSweep(trials=16, items=10, full_every=2).write(tmp_path))
    results = Results(open_sweeps([tmp_path]))
    best = results.nearest_to_ideal(results.lora), results.full(results.sweeps[0]).best
    others = {"lora": itertools.cycle(of_lora[1:]), "full": itertools.cycle(of_full[1:])}
    firsts = {best[0].number: of_lora[0], best[1].number: of_full[0]}
    for record in ledger.trials():
        drawn = firsts.get(record.number) or next(others[record.config.method])
        config = record.config.model_copy(update={"learning_rate": drawn})
        ledger.write_trial(record.model_copy(update={"config": config}))
    of_lora_told, of_full_told = told.split("|")
    conclusion = found(Results(open_sweeps([tmp_path])), "At its best trade-off LoRA's")
    assert (conclusion.verdict, conclusion.evidence) == (
        "open",
        "best trade-off of 8 LoRA and 8 full trials; no interval, a learning rate has one value in "
        "each trial",
    )
    assert conclusion.statement == (
        f"At its best trade-off LoRA's learning rate ({of_lora_told}) is 2 times that of full "
        f"fine-tuning ({of_full_told})."
    )


def test_few_trials_are_said_to_be_too_few_and_no_trend_is_claimed(tmp_path):
    results = results_of(tmp_path, trials=4, ranks=(4,))
    told = statements(results)
    assert found(results, "Too few ranks to say").evidence == "1 rank with a complete trial"
    trends = [found(results, f"Too few LoRA trials to say whether {s}") for s in ("forg", "any")]
    assert [told.evidence for told in trends] == [
        "3 complete; 8 are needed",
        "3 complete; 8 over 3 ranks are needed",
    ]
    assert sum(verdict == "too few data" for verdict in told.values()) == 3
    claimed = [s for s, verdict in told.items() if verdict != "too few data"]
    assert not any("rises" in statement or "falls" in statement for statement in claimed)


def test_of_lora_nothing_is_missed_unless_it_was_searched(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=2, full_every=1).write(tmp_path))
    for search, missed in (({"lora": None}, 0), ({"lora": {"rank": [4, 8]}}, 3)):
        change_config(ledger, search={"full": {"learning_rate": [1e-5]}} | search)
        told = statements(Results(open_sweeps([tmp_path])))
        assert list(told.values()).count("too few data") == missed


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


def test_differences_to_full_sft_are_differences_of_the_columns(results):
    table = paper_table(results)
    *_, full = table.rows
    for row in table.rows[1:-1]:
        for name in ("in-domain", "OOD", "forgetting"):
            difference = row.cells[name].value - full.cells[name].value
            assert row.cells[name].to_full.difference.estimate == pytest.approx(difference)
    assert all(cell.to_full is None for cell in full.cells.values())


@pytest.mark.parametrize(("other", "mark"), [("to_base", "*"), ("to_full", "†")])
def test_marks_are_mcnemars_test_adjusted_for_the_picks_and_over_the_table(results, other, mark):
    table, full = paper_table(results), results.full(results.sweeps[0])
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
    for index, value in enumerate(values):
        write_repeat(ledger, other, 300 + index, value)
    for number in (401, 402):
        write_repeat(ledger, other, number, status=TrialStatus.DIVERGED)
    table = paper_table(Results(open_sweeps([folder])))
    row = next(row for row in table.rows if row.trial == other.number)
    assert cell_text(row.cells["in-domain"]).endswith(f"({told}, 2 of 5 diverged)")
    frame = table.frame().set_index(["row", "column"])
    counts = frame[["seeds_n", "seeds_diverged"]]
    assert tuple(counts.loc[row.label, "in-domain"]) == (3, 2)
    assert tuple(counts.loc["base", "in-domain"]) == (0, 0)


def test_a_gain_over_the_base_is_not_shown_where_all_repeats_lose(tmp_path):
    folder = SyntheticSweep(trials=1, full_every=1, items=120).write(tmp_path)
    alone = Results(open_sweeps([folder]))
    assert found(alone, "The recommended trial gains").verdict == "shown"
    base = alone.base.metrics[IN_DOMAIN_ACC]
    for number in (100, 101):
        write_repeat(Ledger(folder), alone.complete[0], number, base * 0.7)
    told = found(Results(open_sweeps([folder])), "That the recommended trial gains")
    assert told.statement.endswith("is not confirmed by repeats with other seeds.")
    lost, rounded = -30 * base, 100 * 12.7062 / 2**0.5 / 120 / 12**0.5
    ends = f"{lost - rounded:.1f} to {lost + rounded:.1f}"
    assert told.evidence.endswith(f"; over seeds {ends} points, n = 2 repeats")


def test_the_table_has_the_trial_that_repeats_recommend(tmp_path):
    folder = SyntheticSweep(trials=8).write(tmp_path)
    ledger, before = Ledger(folder), Results(open_sweeps([folder]))
    first = before.recommendation.trial
    group = next(group for group in before.groups if first in group.trials)
    second = next(trial for trial in group.trials if trial is not first)
    for index, (trial, value) in enumerate([(first, 0.0), (second, 1.0)]):
        for number in (100, 101):
            write_repeat(ledger, trial, number + 10 * index, value)
    results = Results(open_sweeps([folder]))
    assert results.recommendation.trial.number == second.number
    numbers = [row.trial for row in paper_table(results).rows]
    assert second.number in numbers
    assert first.number not in numbers


def test_a_cell_tells_of_one_repeat_which_has_no_interval(tmp_path):
    folder = SyntheticSweep(trials=1).write(tmp_path)
    [trial] = Results(open_sweeps([folder])).complete
    write_repeat(Ledger(folder), trial, 100, 0.2)
    for ends, lost in (("(0.200, n = 1)", 0), ("(0.200, n = 1, 1 of 2 diverged)", 1)):
        table = paper_table(Results(open_sweeps([folder])))
        assert cell_text(table.rows[1].cells["in-domain"]).endswith(ends)
        columns = ["seeds", "seeds_n", "seeds_diverged"]
        own = table.frame().set_index(["row", "column"]).loc[table.rows[1].label, "in-domain"]
        assert tuple(own[columns]) == (0.2, 1, lost)
        assert own[["seeds_low", "seeds_high"]].isna().all()
        write_repeat(Ledger(folder), trial, 101, status=TrialStatus.DIVERGED)


def test_a_cell_does_not_pass_repeats_that_came_out_alike_for_certain(tmp_path):
    folder = SyntheticSweep(trials=1).write(tmp_path)
    [trial] = Results(open_sweeps([folder])).complete
    for number in (100, 101):
        write_repeat(Ledger(folder), trial, number, 1.0)
    cell = paper_table(Results(open_sweeps([folder]))).rows[1].cells["in-domain"]
    low = 1 - 12.7062 / 2**0.5 / 40 / 12**0.5  # of 40 items, rounded to one
    assert cell_text(cell).endswith(f"(1.000, {low:.3f} to 1.000)")


def test_a_cell_tells_of_repeats_that_diverged_where_no_mean_can_be_given():
    assert cell_text(Cell(0.5, repeats=2, diverged=2)) == "0.500 (2 of 2 diverged)"


@pytest.mark.parametrize(
    ("low", "high", "told", "kind"),
    [
        (0.0002, 0.032, "+0.02 to +3.2", "shown"),
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
    said = _difference("It gains", comparison, "It may not gain", "picked", "the gain")
    assert f"interval of the gain {told} points, n = 100" in said.evidence
    assert said.verdict == kind
    assert _range(interval, FORGETTING_MEAN) == f"{told}, n = 100"


def test_a_mark_needs_an_interval_without_0_as_a_conclusion_does():
    apart, across = (
        Comparison(Interval(-0.1, -0.2, high, 100), "McNemar", 0.001, 30, 1, are_trained=True)
        for high in (-0.05, 0.01)
    )
    assert Cell(0.5, to_base=across, to_full=apart).marks == "†"
    assert Cell(0.5, to_base=apart, to_full=across).marks == "*"
    for p_value in (0.05, 0.06):
        assert Cell(0.5, to_base=replace(apart, p_value=p_value), to_full=apart).marks == "†"


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(0.0496, "p = 0.0496"), (0.0499996, "p = 0.0499996"), (0.0504, "p = 0.05"), (0.05, "p = 0.05"),
     (0.0134, "p = 0.013"), (0.0012, "p = 0.0012"), (0.001, "p = 0.001"), (0.00099, "p < 0.001"),
     (1.0, "p = 1")],
)  # fmt: skip
def test_a_p_value_is_written_on_its_side_of_the_level(p_value: float, text: str) -> None:
    """Else "shown" and "open" stand beside the same number."""
    assert p_text(p_value) == text
