"""When a rank is said to suffice in the domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from builders import adapter, repeat_of, with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.conclusions import Conclusion
from analysis.conclusions.sufficient_capacity import capacity_that_suffices
from analysis.shown_sweeps import Results
from analysis.stats.task_parts import Part
from analysis.sweeps import Sweep, open_sweeps
from trainables.methods import METHODS, Method
from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.records.schema import TrialStatus

BOUND = {"metric": IN_DOMAIN_ACC, "operator": "<=", "bound": 0.95}  # one of any metric would do
DIVERGED = None
Repeats = Mapping[int, Sequence[float | None]]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    written = SyntheticSweep(trials=40, items=2, full_every=0)
    return open_sweeps([written.write(tmp_path_factory.mktemp("sweep"))])[0]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory) -> Sweep:
    written = SyntheticSweep(trials=16, items=2, full_every=0, constraints=(BOUND,))
    return open_sweeps([written.write(tmp_path_factory.mktemp("sweep"))])[0]


class OfRanks(Results):
    """Trials of some ranks that are right on these shares of the in-domain items.

    Args:
        sweep: of at least as many trials.
        accuracies: of the trials of each rank, or of four that are alike.
        repeats: of the best of a rank, the accuracy of runs with other seeds.
        seed: of items that trials answer by chance; by default a better trial answers more items.
        make: the method of a rank, or of what it has instead.
    """

    def __init__(
        self,
        sweep: Sweep,
        accuracies: Mapping[int, float | Sequence[float]],
        repeats: Repeats | None = None,
        items: int = 800,
        seed: int | None = None,
        make: Callable[[int], Method] = lambda rank: adapter(rank=rank, alpha=8),
    ) -> None:
        draw = np.random.default_rng(seed or 0)
        order = (np.arange(items) + 0.5) / items
        pairs = [
            (rank, accuracy)
            for rank, own in accuracies.items()
            for accuracy in ([own] * 4 if isinstance(own, float) else own)
        ]
        scores: dict[str, dict[str, np.ndarray]] = {}
        trials = []
        for record, (rank, accuracy) in zip(sweep.trials, pairs, strict=False):
            own = ((order if seed is None else draw.random(items)) < accuracy).astype(float)
            scores[record.config.trial_id] = {"sums": own}
            metrics = record.last.metrics | {IN_DOMAIN_ACC: float(own.mean())}
            method = make(rank)
            config = record.config.model_copy(update={"method": method})
            trials.append(with_metrics(record, metrics, config=config))
        for rank, values in (repeats or {}).items():
            best = max(
                (r for r in trials if r.config.capacity.number == rank and r.confirms is None),
                key=lambda r: r.metric(IN_DOMAIN_ACC),
            )
            for value in values:
                status = TrialStatus.DIVERGED if value is None else TrialStatus.COMPLETE
                number = 1000 + len(trials)
                trials.append(repeat_of(best, number, {IN_DOMAIN_ACC: value or 0.0}, status))
        base_scores = {
            task: score.model_copy(update={"items": items})
            for task, score in sweep.base.scores.items()
        }
        base = sweep.base.model_copy(update={"scores": base_scores})
        super().__init__([replace(sweep, trials=tuple(trials), base=base)])
        self.items._scores_of = lambda record: scores[record.config.trial_id]
        self.items._base_scores = {"sums": np.zeros(items)}
        self.items._parts = lambda tasks: [Part("sums", np.arange(items), 1.0)]


def conclusion(results: Results) -> Conclusion:
    [found] = capacity_that_suffices(results, results.sweeps[0])
    return found


EQUAL = {1: 0.2, 4: 0.9, 16: 0.9, 64: 0.9}
LUCKY = EQUAL | {16: (0.99, 0.9, 0.9, 0.9)}


@pytest.mark.parametrize(
    ("accuracies", "repeats", "says", "verdict"),
    [
        (EQUAL | {64: 0.901}, {}, "rank 4 suffices", "open"),
        (EQUAL | {1: (0.9,)}, {}, "rank 4 suffices", "open"),  # one trial shows nothing of rank 1
        (EQUAL | {64: (0.9,) * 3}, {}, "No rank below 64 is shown to suffice", "open"),
        ({1: 0.2, 4: 0.6, 16: 0.9}, {}, "No rank below 16 is shown to suffice", "open"),
        (EQUAL, {4: (0.9,) * 2, 64: (0.92,) * 2}, "rank 4 suffices", "open"),
        (EQUAL, {4: (0.9,) * 2, 64: (0.93,) * 2}, "rank 16 suffices", "open"),
        (EQUAL, {4: (0.9,), 16: (0.9,), 64: (0.93,)}, "No rank below 64", "open"),
        (EQUAL, {4: (0.9,) * 2, 16: (0.9,) * 2, 64: (0.91,) * 2}, "Rank 4 suffices", "shown"),
        (EQUAL, {16: (0.9,) * 2, 64: (0.9,) * 2}, "rank 4 suffices", "open"),
        (LUCKY, {}, "rank 16 suffices", "open"),
        (LUCKY, {16: (DIVERGED,)}, "rank 4 suffices", "open"),
        ({1: 0.2, 4: 0.9}, {}, "Too few ranks", "too few data"),
    ],
)
def test_a_rank_suffices_if_no_higher_one_gains_more_than_2_points(
    sweep, accuracies, repeats, says, verdict
):
    found = conclusion(OfRanks(sweep, accuracies, repeats))
    assert says in found.statement
    assert found.verdict == verdict
    assert ("In one run of each" in found.statement) == (verdict == "open" and "rank" in says[:4])


def test_constraints_decide_which_trial_is_the_best_of_a_rank(bounded):
    assert "rank 4 suffices" in conclusion(OfRanks(bounded, LUCKY)).statement
    of_all = conclusion(OfRanks(bounded, {1: 0.99, 4: 0.9, 16: 0.9}))
    assert "rank 1 suffices" in of_all.statement
    assert "none of rank 1 keeps every constraint" in of_all.evidence
    lost = conclusion(OfRanks(bounded, EQUAL | {4: (0.99, 0.9)}, {4: (DIVERGED,)}))
    assert "rank 4 suffices" not in lost.statement


def test_the_wider_of_the_bounds_over_items_and_over_seeds_is_given(sweep):
    repeats = {
        rank: [mean + by for by in (-0.001, 0.0, 0.001)]
        for rank, mean in ((4, 0.881), (16, 0.895), (64, 0.897))
    }
    found = conclusion(OfRanks(sweep, EQUAL, repeats))
    half = scipy.stats.t.ppf(0.975, 2) * 0.001 / 3**0.5 * 2**0.5  # of a difference of two means
    most = f"{math.ceil(1000 * (0.016 + half)) / 10:.1f} points"
    assert found.verdict == "shown"
    assert f"gains more than {most} over its best." in found.statement


def test_where_the_parameters_fall_with_the_capacity_a_lower_one_may_gain_more(sweep):
    c3a = METHODS.find("c3a")
    falling = {2: 0.9, 4: 0.9, 32: 0.2}
    found = conclusion(OfRanks(sweep, falling, make=lambda size: c3a(block_size=size)))
    assert "block size 4 suffices in the domain: the best trial of no lower" in found.statement
