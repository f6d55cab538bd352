"""The Pareto front, and which of its trials is recommended and why."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
from builders import GAIN, LOSS, OOD, sweep_config, trial

from analysis.results.pareto import pareto_front
from analysis.results.recommendation import recommend
from analysis.results.trade_off import objective_ranges
from trainables import metric_keys
from trainables.records.schema import TrialRecord, TrialStatus

if TYPE_CHECKING:
    from tune.config.sweep_config import SweepConfig

TWO = [{"metric": GAIN, "mode": "max"}, {"metric": LOSS, "mode": "min"}]


THREE = [*TWO, {"metric": OOD, "mode": "max"}]


def numbers(records: list[TrialRecord]) -> list[int]:
    return [record.number for record in records]


def random_records(seed: int, objectives: list[dict[str, str]]) -> list[TrialRecord]:
    draw = random.Random(seed)
    levels = [round(0.1 * level, 1) for level in range(8)]  # few, so that ties happen
    return [
        trial(
            number,
            {objective["metric"]: draw.choice(levels) for objective in objectives},
            draw.choice([TrialStatus.COMPLETE] * 4 + [TrialStatus.FAILED, TrialStatus.RUNNING]),
        )
        for number in range(draw.randrange(25))
    ]


def brute_force_front(config: SweepConfig, records: list[TrialRecord]) -> list[int]:
    def losses(record: TrialRecord) -> list[float]:
        signs = [1 if objective.mode == "min" else -1 for objective in config.objectives]
        return [
            sign * record.last.metrics[objective.metric]
            for sign, objective in zip(signs, config.objectives, strict=True)
        ]

    candidates = [
        record
        for record in records
        if record.status is TrialStatus.COMPLETE
        and all(c.holds(record.last.metrics[c.metric]) for c in config.constraints)
    ]
    return [
        own.number
        for own in candidates
        if not any(
            losses(other) != losses(own)
            and all(a <= b for a, b in zip(losses(other), losses(own), strict=True))
            for other in candidates
        )
    ]


def test_a_bound_that_is_met_exactly_is_kept() -> None:
    """0.90 - 0.85 is 0.050000000000000044, and 0.95 - 0.90 is 0.04999999999999993."""
    differences = [0.90 - 0.85, 0.95 - 0.90, 0.05]
    assert differences[0] > 0.05 > differences[1]
    records = [trial(n, {GAIN: 0.8, LOSS: loss}) for n, loss in enumerate(differences)]
    for bound, kept in (("<= 0.05", [0, 1, 2]), ("<= 5e-2", [0, 1, 2]), ("< 0.05", [])):
        assert numbers(pareto_front(sweep_config(constraints=[f"{LOSS} {bound}"]), records)) == kept


@pytest.mark.parametrize("objectives", [TWO[:1], TWO[1:], TWO, THREE], ids=str)
@pytest.mark.parametrize("constraints", [(), (f"{LOSS} <= 0.3",), (f"{LOSS} < 0.3", f"{GAIN} > 0")])
def test_the_front_is_what_brute_force_finds(objectives, constraints):
    sizes = set()
    for seed in range(25):
        named = [*objectives, *({"metric": m} for m in (GAIN, LOSS))]
        records = random_records(seed, named)
        config = sweep_config(objectives=objectives, constraints=constraints)
        expected = brute_force_front(config, records)
        assert numbers(pareto_front(config, records)) == expected
        sizes.add(len(expected))
    assert len(sizes) > 1


def test_a_trial_without_an_objective_or_a_constrained_metric_is_not_on_the_front():
    records = [trial(0, {GAIN: 0.9}), trial(1, {GAIN: 0.5, LOSS: 0.1}), trial(2, None)]
    assert numbers(pareto_front(sweep_config(), records)) == [1]
    bounded = sweep_config(objectives=TWO[:1], constraints=[f"{LOSS} <= 1"])
    assert numbers(pareto_front(bounded, records)) == [1]


def test_one_objective_recommends_the_best_and_the_lower_number_on_a_tie():
    records = [trial(n, {GAIN: gain}) for n, gain in [(0, 0.5), (1, 0.75), (2, 0.75), (3, 0.7)]]
    found = recommend(sweep_config(objectives=TWO[:1]), records)
    assert found.trial.number == 1
    assert found.reason == (f"highest {GAIN} (0.750) of 4 complete trials (as good: trial 2).")


def test_several_objectives_recommend_the_knee():
    # Scaled losses: (1, 0), (0.4, 0.2), (0, 1); 0.45 from the ideal is the least.
    records = [
        trial(0, {GAIN: 0.5, LOSS: 0.0}),
        trial(1, {GAIN: 0.8, LOSS: 0.02}),
        trial(2, {GAIN: 1.0, LOSS: 0.1}),
        trial(3, {GAIN: 0.79, LOSS: 0.03}),
    ]
    found = recommend(sweep_config(), records)
    assert found.trial.number == 1
    assert found.feasible
    assert "the knee of the front's 3 trials" in found.reason
    assert f"{GAIN} 0.800, {LOSS} +0.020" in found.reason


def test_the_knee_scales_over_the_front_and_not_over_all_trials():
    front = [{GAIN: 0.0, LOSS: 0.0}, {GAIN: 0.45, LOSS: 0.4}, {GAIN: 1.0, LOSS: 1.0}]
    records = [trial(n, metrics) for n, metrics in enumerate(front)]
    # Scaled over the front all are sqrt(0.55² + 0.4²) = 0.68 or 1 away. Over all trials, of which
    # trial 3 forgets 100 times as much, forgetting would not count and trial 2 would win.
    dominated = trial(3, {GAIN: 0.0, LOSS: 100.0})
    assert recommend(sweep_config(), [*records, dominated]).trial.number == 1


@pytest.mark.parametrize(("constraints", "taken"), [([], 0), ([f"{GAIN} >= 0.1"], 1)])
def test_a_front_of_two_is_scaled_over_all_trials_that_may_be_taken(constraints, taken):
    # By trials 0 to 2 the front is 0.83 and 0.80 away; a gain of 0 makes that 0.5 and 0.8.
    values = [{GAIN: 0.5, LOSS: 0.0}, {GAIN: 1.0, LOSS: 0.4}, {GAIN: 0.4, LOSS: 0.5}]
    records = [trial(n, metrics) for n, metrics in enumerate(values)]
    worst = trial(3, {GAIN: 0.0, LOSS: 0.1})
    goals = sweep_config(constraints=constraints)
    assert recommend(goals, [*records, worst]).trial.number == taken


# Of few items that flipped, so less than the accuracy's, which is 0.02.
OF_A = 0.02 * math.sqrt((0.03 - 0.01**2) / 0.25)


@pytest.mark.parametrize(
    ("metric", "error"),
    [
        ("in_domain/sums/acc", 0.03),
        ("in_domain/acc_mean", 0.015),
        ("ood/gap", math.hypot(0.015, 0.04)),
        ("forgetting/a", OF_A),
        ("forgetting/b", 0.01),
        ("forgetting/max", 0.01),
        ("forgetting/mean", math.hypot(OF_A, 0.01) / 3),
        ("forgetting/positive_mean", math.hypot(OF_A, 0.01) / 3),
        ("train/loss", 0.0),
    ],
)
def test_an_objective_is_scaled_over_no_less_than_two_of_its_standard_errors(metric, error):
    metrics = {"in_domain/sums/acc_stderr": 0.03, "in_domain/more/f1_stderr": 0.0}
    metrics |= {"retention/a/acc": 0.5, "retention/a/acc_stderr": 0.02}
    metrics |= {"flips/a/forgotten": 0.02, "flips/a/gained": 0.01}
    metrics |= {"retention/b/acc_stderr": 0.01, "ood/harder/acc_stderr": 0.04}
    metrics |= {"retention/lost/acc": 0.0, "retention/lost/acc_stderr": 0.0}
    metrics |= {"flips/lost/forgotten": 0.4, "flips/lost/gained": 0.0}
    suite = {"in_domain": ["sums", "more"], "retention": ["a", "b", "lost"], "ood": ["harder"]}
    mode = "max" if metric.startswith("in_domain") else "min"
    goals = sweep_config(eval=suite, objectives=[{"metric": metric, "mode": mode}])
    records = [trial(0, metrics | {metric: 0.01}), trial(1, {metric: 0.01 + error})]
    [(best, worst)] = objective_ranges(goals, records)
    assert worst - best == pytest.approx(2 * error)


@pytest.mark.parametrize(
    ("bound", "facts"),
    [
        (1.0, ("the only complete trial that keeps every constraint", "0.900", "+0.100")),
        (0.05, ("no trial keeps every constraint", "is 0.1, not <= 0.05")),
    ],
)
def test_one_complete_trial_is_said_to_be_the_only_one(bound, facts):
    failed = trial(1, {GAIN: 0.9, LOSS: 0.0}, TrialStatus.FAILED)
    records = [trial(0, {GAIN: 0.9, LOSS: 0.1}), failed]
    reason = recommend(sweep_config(constraints=[f"{LOSS} <= {bound}"]), records).reason
    assert all(fact in reason for fact in facts)


def test_where_none_is_feasible_the_least_violation_in_total_is_recommended_and_said():
    records = [
        trial(0, {GAIN: 0.9, LOSS: 0.3}),
        trial(1, {GAIN: 0.65, LOSS: 0.0502}),  # misses by 0.05 and 0.0002
        trial(2, {GAIN: 0.5, LOSS: 0.0}),
        trial(3, {GAIN: 0.7}),
    ]
    bounds = [f"{LOSS} <= 0.05", f"{GAIN} >= 0.7", f"{GAIN} <= 0.65"]  # the last is just kept
    found = recommend(sweep_config(constraints=bounds), records)
    assert (found.trial.number, found.feasible) == (1, False)
    assert found.reason == (
        "no trial keeps every constraint, and of 3 complete trials this one misses them by the "
        f"least: {LOSS} is 0.0502, not <= 0.05 and {GAIN} is 0.65, not >= 0.7."
    )


def test_misses_of_constraints_in_different_units_count_alike():
    """A second is no more than an accuracy of 1: each counts as a share of its bound."""
    seconds = metric_keys.TRAIN_SECONDS
    records = [
        trial(0, {GAIN: 0.9, LOSS: 0.70, seconds: 3605.0}),
        trial(1, {GAIN: 0.9, LOSS: 0.06, seconds: 3700.0}),
        trial(2, {GAIN: 0.9, LOSS: 0.06, seconds: 4600.0}),
        trial(3, {GAIN: 0.9, LOSS: 0.0}),  # misses by infinitely much
        trial(4, {GAIN: 0.9, LOSS: 0.055, seconds: 4140.0}),  # 0.1 + 0.15; trial 1: 0.2 + 0.03
    ]
    config = sweep_config(constraints=[f"{LOSS} <= 0.05", f"{seconds} <= 3600"])
    assert recommend(config, records).trial.number == 1


def test_nothing_is_recommended_where_nothing_is_complete():
    assert recommend(sweep_config(), []) is None
    stopped = trial(0, {GAIN: 1.0, LOSS: 0.0}, TrialStatus.STOPPED_EARLY)
    assert recommend(sweep_config(), [stopped]) is None
