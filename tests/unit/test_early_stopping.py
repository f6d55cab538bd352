"""Successive halving: who goes on, and that a restart changes nothing."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, TRAIN_LOSS
from trainables.records import Measurement
from tune.early_stopping import Rung, SuccessiveHalving
from tune.sweep_config import Constraint, EarlyStoppingConfig

TOTAL = 90
CONFIG = EarlyStoppingConfig(metrics={IN_DOMAIN_ACC: 1.0}, reduction_factor=3, first_rung=1 / 9)


def at(step: int, accuracy: float | None, **metrics: float) -> Measurement:
    values = {} if accuracy is None else {IN_DOMAIN_ACC: accuracy}
    return Measurement(step=step, total_steps=TOTAL, metrics=values | metrics, time=0.0)


def test_rungs_lie_a_reduction_factor_apart_and_below_the_end() -> None:
    rule = SuccessiveHalving(CONFIG)
    rule.decide(0, at(1, 0.5))
    assert [rung.step for rung in rule._rungs_of(TOTAL)] == [10, 30]


def test_below_the_reduction_factor_every_trial_goes_on() -> None:
    rule = SuccessiveHalving(CONFIG)
    assert [rule.decide(n, at(10, a)) for n, a in enumerate([0.9, 0.1])] == [None, None]


def test_third_and_worst_at_a_rung_is_stopped_and_says_where() -> None:
    rule = SuccessiveHalving(CONFIG)
    for number, accuracy in enumerate([0.9, 0.5]):
        rule.decide(number, at(10, accuracy))
    reason = rule.decide(2, at(12, 0.4))
    assert reason == "not among the best 1/3 at step 12"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from([2.0, 3.0, 4.0]))
def test_decision_equals_a_count_of_those_before(scores: list[float], factor: float) -> None:
    rung = Rung(step=1)
    for number, score in enumerate(scores):
        seen = scores[: number + 1]
        better = sum(other > score for other in seen)
        among_best = better < max(1, math.floor(len(seen) / factor))
        assert rung.admits(number, score, factor) == (len(seen) < factor or among_best)


@given(st.integers(0, 2**16))
def test_replay_in_any_order_decides_as_the_uninterrupted_rule_does(seed: int) -> None:
    generator = random.Random(seed)
    histories = {
        n: [at(step, generator.random()) for step in range(10, TOTAL, 10)] for n in range(12)
    }
    whole, told = SuccessiveHalving(CONFIG), {}
    for number, history in histories.items():
        told[number] = next((m.step for m in history if whole.decide(number, m)), None)
    kept = generator.randrange(12)
    rebuilt = SuccessiveHalving(CONFIG)
    for number in generator.sample(range(kept), kept):
        recorded = [m for m in histories[number] if told[number] is None or m.step <= told[number]]
        rebuilt.replay(number, recorded)
    for number in range(kept, 12):
        stopped = next((m.step for m in histories[number] if rebuilt.decide(number, m)), None)
        assert stopped == told[number]


def test_a_trial_is_judged_once_at_a_rung() -> None:
    rule = SuccessiveHalving(CONFIG)
    for number, accuracy in enumerate([0.5, 0.6, 0.7]):
        rule.decide(number, at(10, accuracy))
    assert rule.decide(2, at(20, 0.0)) is None


def test_points_of_the_training_curve_decide_nothing() -> None:
    rule = SuccessiveHalving(CONFIG)
    for number, accuracy in enumerate([0.9, 0.8, None]):
        assert rule.decide(number, at(10, accuracy)) is None


def test_last_step_is_never_stopped() -> None:
    rule = SuccessiveHalving(CONFIG, [Constraint.model_validate(f"{FORGETTING_MEAN} <= 0.05")])
    assert rule.decide(0, at(TOTAL, 0.0, **{FORGETTING_MEAN: 0.9, TRAIN_LOSS: 1e9})) is None


def test_scalarised_pair_weighs_gain_against_forgetting() -> None:
    both = EarlyStoppingConfig(metrics={IN_DOMAIN_ACC: 1, FORGETTING_MEAN: -2}, reduction_factor=2)
    rule = SuccessiveHalving(both)
    assert rule.decide(0, at(10, 0.8, **{FORGETTING_MEAN: 0.0})) is None
    assert rule.decide(1, at(10, 0.9, **{FORGETTING_MEAN: 0.2})) is not None


def test_constraint_broken_at_a_rung_stops_and_is_named() -> None:
    rule = SuccessiveHalving(CONFIG, [Constraint.model_validate(f"{FORGETTING_MEAN} <= 0.05")])
    reason = rule.decide(0, at(10, 0.99, **{FORGETTING_MEAN: 0.2}))
    assert reason == "forgetting/mean <= 0.05 is broken already: 0.2 at step 10"


@pytest.mark.parametrize(("loss", "stops"), [(2.9, False), (3.1, True)])
def test_exploding_loss_stops_at_a_multiple_of_the_first(loss: float, stops: bool) -> None:
    rule = SuccessiveHalving(CONFIG)
    rule.decide(0, at(1, None, **{TRAIN_LOSS: 1.0}))
    assert (rule.decide(0, at(2, None, **{TRAIN_LOSS: loss})) is not None) is stops
