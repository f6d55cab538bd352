"""What is said of the best of many trials on the very items that it was picked by."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from builders import with_metrics
from scipy.stats import binomtest
from synthetic_sweep import TASKS, SyntheticSweep

from analysis.conclusions import Conclusion
from analysis.conclusions.comparisons import (
    full_against_lora,
    recommended_against_base,
)
from analysis.conclusions.sufficient_rank import rank_that_suffices
from analysis.paper_table import paper_table
from analysis.report.answer import answer
from analysis.report.rank_section import rank_figure
from analysis.report.task_section import flips
from analysis.results.formatting import NAMES
from analysis.shown_sweeps import Results
from analysis.stats.intervals import bootstrap_mean, over_items, upper_bound
from analysis.stats.shared_questions import Part, Scores, Stratum
from analysis.stats.significance import holm, sign_flips
from analysis.sweeps import Sweep, open_sweeps
from trainables.config import LoraConfig
from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.records.schema import TrialStatus

TRIALS, ITEMS, SWEEPS = 40, 120, 100
OF_RANK_4 = TRIALS - 5
IN_DOMAIN = ({"metric": IN_DOMAIN_ACC, "mode": "max"},)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    written = SyntheticSweep(trials=TRIALS, items=2, objectives=IN_DOMAIN, full_every=TRIALS)
    return open_sweeps([written.write(tmp_path_factory.mktemp("sweep"))])[0]


class Drawn(Results):
    """A sweep whose trials differ from the base on items that went either way by a fair coin."""

    def __init__(self, sweep: Sweep, seed: int) -> None:
        draw = np.random.default_rng(seed)
        base = {task: draw.integers(0, 2, ITEMS).astype(float) for task in TASKS}
        self.drawn: dict[str, Scores] = {}
        trials = []
        for record in sweep.trials:
            own = {t: np.where(draw.random(ITEMS) < 0.2, 1 - s, s) for t, s in base.items()}
            self.drawn[record.config.trial_id] = own
            metrics = record.last.metrics | {IN_DOMAIN_ACC: float(own["sums"].mean())}
            trials.append(with_metrics(record, metrics))
        super().__init__([replace(sweep, trials=tuple(trials))])
        self.items._scores_of = self.drawn.__getitem__
        self.items._base_scores = base
        questions = np.arange(ITEMS)
        self.items._strata = lambda tasks: [
            Stratum((Part(task, questions, 1 / len(tasks)),)) for task in tasks
        ]


def test_the_best_of_many_trials_that_learnt_nothing_is_not_shown_to_have_learnt(sweep):
    recommended, full = 0, 0
    for seed in range(SWEEPS):
        results = Drawn(sweep, seed)
        recommended += any(c.verdict == "shown" for c in recommended_against_base(results))
        told = full_against_lora(results, results.sweeps[0])
        in_domain = [c for c in told if "in the domain" in c.statement]
        full += any(c.verdict == "shown" for c in in_domain)
    assert recommended <= 0.05 * SWEEPS
    assert full <= 0.05 * SWEEPS


def test_the_accuracies_of_the_best_of_many_trials_have_intervals_that_hold_for_all(sweep):
    """Each trial is right on half of the items there are; of one trial 95 % of intervals say so."""
    missed = 0
    for seed in range(SWEEPS):
        results = Drawn(sweep, seed)
        told = next(n.interval for n in answer(results).numbers if n.name == NAMES[IN_DOMAIN_ACC])
        assert told.endswith(f", n = {ITEMS}, simultaneous over {TRIALS} trials")
        low, high = map(float, told.partition(",")[0].split(" to "))
        missed += not low <= 0.5 <= high
    assert missed <= 0.05 * SWEEPS


def test_the_evidence_says_what_the_trial_was_picked_from_and_holds_for_all_of_them(sweep):
    results = Drawn(sweep, seed=0)
    trial = results.recommendation.trial
    [gain, _] = recommended_against_base(results)
    assert gain.evidence.endswith("; best of 40 trials, picked on these items")
    assert gain.evidence.startswith("simultaneous 95 % interval of the gain ")
    plain = results.items.compare(trial, None, ["sums"], picked_from=1)
    picked = results.items.compare(trial, None, ["sums"], picked_from=40)
    assert picked.p_value == pytest.approx(min(1, 40 * plain.p_value))
    wide = over_items(
        *results.items.differences(trial, None, ["sums"]), bounds=(-1, 1), level=1 - 0.05 / 40
    )
    assert (picked.difference.low, picked.difference.high) == pytest.approx((wide.low, wide.high))
    assert picked.difference.low < plain.difference.low
    assert picked.difference.high > plain.difference.high
    [of_full, *_] = full_against_lora(results, results.sweeps[0])
    assert "best of 1 full and of 39 LoRA trials" in of_full.evidence


def test_trials_that_their_scores_stopped_early_are_among_those_picked_from(tmp_path):
    stopped = {n: TrialStatus.STOPPED_EARLY for n in range(TRIALS) if n % 4}
    written = SyntheticSweep(
        trials=TRIALS, items=ITEMS, ranks=(4,), full_every=5, failures=stopped
    ).write(tmp_path)
    results = Results(open_sweeps([written]))
    assert len(results.complete) == 10
    trial = results.recommendation.trial
    for told in recommended_against_base(results):
        assert told.evidence.endswith("; best of 40 trials, picked on these items")
    numbers = [number.interval for number in answer(results).numbers]
    assert all(told.endswith("simultaneous over 40 trials") for told in numbers)
    pairs = results.items.pairs(trial)
    discordant = {
        task: [pair.is_gained for pair in own if pair.is_gained or pair.is_forgotten]
        for task, own in pairs.items()
    }
    raw = [binomtest(sum(own), len(own)).pvalue if own else 1.0 for own in discordant.values()]
    adjusted = dict(zip(discordant, holm([min(1.0, 40 * p) for p in raw]), strict=True))
    assert {f.task: f.p_value for f in flips(results, trial)} == pytest.approx(adjusted)
    assert [row.trials for row in paper_table(results).rows] == [0, 32, 8]
    [of_full, *_] = full_against_lora(results, results.sweeps[0])
    assert "best of 8 full and of 32 LoRA trials" in of_full.evidence


def test_the_bars_on_curves_over_ranks_hold_for_all_trials_that_each_best_was_picked_from(sweep):
    """Every trial is right on half of the items there are, so that few bars may leave 0.5 out."""
    left_out = 0
    for seed in range(SWEEPS):
        results = Drawn(sweep, seed)
        figure = rank_figure(results)
        [line] = [t for t in figure.charts[0].data if t["mode"] == "lines+markers"]
        below, above = line["error_y"]["arrayminus"], line["error_y"]["array"]
        left_out += sum(
            not value - low <= 0.5 <= value + high
            for value, low, high in zip(line["y"], below, above, strict=True)
        )
    groups = results.lora_groups(results.sweeps[0])
    assert left_out <= 0.05 * SWEEPS * len(groups)
    for group, text in zip(groups, line["text"], strict=True):
        assert text.endswith(f"<br>best of {group.picked_from} trials")


@pytest.mark.parametrize("trials", [1, 2])
def test_one_trial_was_not_picked(sweep, trials):
    drawn = replace(sweep, trials=sweep.trials[1 : 1 + trials])
    evidence = recommended_against_base(Drawn(drawn, seed=0))[0].evidence
    assert evidence.startswith("simultaneous 95 % interval " if trials > 1 else "95 % interval ")
    assert ("picked" in evidence) is ("Bonferroni" in evidence) is (trials > 1)


def test_an_interval_beyond_the_resamples_is_as_wide_as_many_more_of_them_make_it():
    values = np.random.default_rng(0).choice([-1, 0, 1], 300, p=[0.1, 0.7, 0.2])
    found = bootstrap_mean([values], level=1 - 0.05 / 300)
    many = bootstrap_mean([values], level=1 - 0.05 / 300, resamples=1_000_000)
    assert (found.low, found.high) == pytest.approx((many.low, many.high), abs=0.01)
    bounded = bootstrap_mean([[0] * 5 + [1] * 15], level=1 - 1e-9, bounds=(0, 1))
    assert bounded.high == 1


def test_p_values_are_not_bounded_by_the_number_of_draws():
    """Else no difference, however large, would outlive a correction for thousands of pairs."""
    continuous = np.random.default_rng(0).normal(0.6, 1, 1000)
    assert 0 < sign_flips([continuous], [1]) < 1e-9


def suffices(results: Results) -> Conclusion:
    [conclusion] = rank_that_suffices(results, results.sweeps[0])
    return conclusion


class RanksApart(Results):
    """Trials of three ranks; one of the four of rank 16 is better than every one of rank 4.

    Args:
        sweep: as many trials as there are of rank 4, and five more.
        seed: of the draws.
        gain: how much better, a share.
        kept: how many of rank 4 complete, the best; the others are stopped early.
    """

    def __init__(self, sweep: Sweep, seed: int, gain: float, kept: int = TRIALS) -> None:
        draw, items = np.random.default_rng(seed), 10_000
        of_ranks = [(1, 0.1), *[(4, 0.5)] * OF_RANK_4, *[(16, 0.1)] * 3, (16, 0.5 + gain)]
        accuracies = [(r, *of_rank) for r, of_rank in zip(sweep.trials, of_ranks, strict=True)]
        scores: dict[str, Scores] = {}
        trials = []
        for record, rank, accuracy in accuracies:
            own = (draw.random(items) < accuracy).astype(float)
            scores[record.config.trial_id] = {"sums": own}
            metrics = record.last.metrics | {IN_DOMAIN_ACC: float(own.mean())}
            changes = {"method": "lora", "lora": LoraConfig(rank=rank, alpha=8)}
            config = record.config.model_copy(update=changes)
            trials.append(with_metrics(record, metrics, config=config))
        of_rank_4 = sorted(trials[1:-4], key=lambda r: -r.last.metrics[IN_DOMAIN_ACC])
        for record in of_rank_4[kept:]:
            stopped = record.model_copy(update={"status": TrialStatus.STOPPED_EARLY})
            trials[trials.index(record)] = stopped
        super().__init__([replace(sweep, trials=tuple(trials))])
        self.items._scores_of = scores.__getitem__
        self.items._base_scores = {"sums": np.zeros(items)}
        self.items._strata = lambda tasks: [Stratum((Part("sums", np.arange(items), 1.0),))]


def test_the_luckiest_of_a_ranks_trials_does_not_make_the_rank_suffice(sweep):
    worse = [suffices(RanksApart(sweep, seed, gain=0.021)) for seed in range(SWEEPS)]
    told = [one.statement.startswith("In one run of each, rank 4 suffices") for one in worse]
    assert sum(told) <= 0.05 * SWEEPS
    as_good = suffices(RanksApart(sweep, seed=0, gain=-0.05))
    assert as_good.statement == (
        "In one run of each, rank 4 suffices in the domain: the best trial of no higher rank gains "
        "more than 0.0 points over its best; repeats of these with other seeds would tell whether "
        "it does."
    )


def test_a_ranks_trials_that_were_stopped_early_are_among_those_its_best_was_picked_from(sweep):
    results = RanksApart(sweep, seed=0, gain=-0.005, kept=4)
    [*_, best] = sorted(
        (r for r in results.complete if r.rank == 4), key=lambda r: r.metric(IN_DOMAIN_ACC)
    )
    [*_, higher] = [r for r in results.complete if r.rank == 16]
    gains = results.items.differences(higher, best, ["sums"])
    most, of_four = (upper_bound(*gains, level=1 - 0.05 / 2 / of) for of in (OF_RANK_4, 4))
    assert 0.001 < of_four < most - 0.001
    told = f"gains more than {math.ceil(1000 * most) / 10:.1f} points over its best;"
    assert told in suffices(results).statement
