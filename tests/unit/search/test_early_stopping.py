"""Successive halving: who goes on, and that a restart changes nothing."""

from __future__ import annotations

import math
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.utils.util import flatten_dict

from trainables.config import Constraint, TrainConfig
from trainables.config.train_config import step_at
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    KL_BASE_TO_TUNED,
    TRAIN_LOSS,
)
from trainables.records.schema import Measurement, Outcome, TrialStatus
from trainables.workers.reporters import MEASUREMENT
from tune.config.sweep_config import EarlyStoppingConfig
from tune.search.early_stopping import (
    EarlyStopping,
    Rung,
    SuccessiveHalving,
    kept_by_base,
)

TOTAL = 90
TRAIN = TrainConfig()
CONFIG = EarlyStoppingConfig(metrics={IN_DOMAIN_ACC: 1.0}, reduction_factor=3, first_rung=1 / 9)


LIMITS = [Constraint.model_validate(f"{FORGETTING_MEAN} <= 0.05")]


def stopped(reason: str) -> Outcome:
    return Outcome(status=TrialStatus.STOPPED_EARLY, reason=reason)


def at(step: int, accuracy: float | None, **metrics: float) -> Measurement:
    values = {} if accuracy is None else {IN_DOMAIN_ACC: accuracy}
    return Measurement(step=step, total_steps=TOTAL, metrics=values | metrics, time=0.0)


def test_rungs_are_a_reduction_factor_apart() -> None:
    rungs = SuccessiveHalving(CONFIG)._get_rungs(TRAIN)
    assert [rung.share for rung in rungs] == pytest.approx([1 / 9, 1 / 3])


def trained(
    batch_size: int, share: float = 1 / 3, **fields: Any
) -> tuple[Measurement, TrainConfig]:
    """What a training on 1000 samples measures at that share; the larger its batch the worse."""
    train = TrainConfig(batch_size=batch_size, micro_batch_size=1, **fields)
    total = train.total_steps(1000)
    measured = at(step_at(share, total), 1.0 / batch_size)
    return measured.model_copy(update={"total_steps": total}), train


def test_trials_of_other_batch_sizes_are_compared_at_equal_shares() -> None:
    trials = dict(enumerate(map(trained, (4, 8, 16, 32))))
    rule = SuccessiveHalving(CONFIG)
    outcomes = {number: rule.decide(number, *trial) for number, trial in trials.items()}
    assert outcomes == {
        0: None,
        1: None,
        2: stopped("not among the best 1/3 at step 21"),
        3: stopped("not among the best 1/3 at step 11"),
    }
    histories = {n: [m.model_copy(update={"time": float(n)})] for n, (m, _) in trials.items()}
    trains = {number: train for number, (_, train) in trials.items()}
    replayed = SuccessiveHalving(CONFIG).replay(histories, trains)
    assert replayed == {number: end for number, end in outcomes.items() if end}


# Of fewer steps a twentieth may be rounded up to the next rung.


def test_scheduler_compares_trials_of_one_length_and_no_repeats() -> None:
    scheduler = EarlyStopping(SuccessiveHalving(CONFIG))

    def told(number: int, batch_size: int, epochs: float, confirms: int | None = None) -> str:
        measured, train = trained(batch_size, epochs=epochs)
        config = {"number": number, "train": train.model_dump(mode="json")}
        result = flatten_dict({MEASUREMENT: measured.model_dump()})
        trial: Any = SimpleNamespace(
            config={"trial": config, "confirms": confirms}, trial_id=str(number)
        )
        assert scheduler.on_trial_result(None, trial, {}) == "CONTINUE"  # nothing was measured
        return scheduler.on_trial_result(None, trial, result)

    of_one = [told(number, size, 1.0) for number, size in enumerate((4, 8))]
    repeat = told(4, 32, 1.0, confirms=0)
    others = [told(2, 32, 2.0), repeat, told(3, 32, 1.0)]
    assert [*of_one, *others] == [*["CONTINUE"] * 4, "STOP"]
    assert scheduler.outcome("4") is None
    assert scheduler.outcome("3") == stopped("not among the best 1/3 at step 11")


# Where in its training a trial is, of which the first and the last are too far apart to compare;
# and pairs of a loss and its standard error, of which two are as 3, 4 and 5.
_ARRIVALS = st.integers(1, 3).flatmap(
    lambda count: st.lists(
        st.tuples(
            st.sampled_from([0.50, 0.52, 0.54]),
            st.tuples(*[st.tuples(st.integers(0, 9), st.sampled_from([0, 3, 4]))] * count),
        ),
        min_size=1,
        max_size=40,
    )
)


@settings(max_examples=40)
@given(_ARRIVALS, st.sampled_from([2.0, 3.0, 4.0]))
def test_decision_equals_brute_force(
    arrivals: list[tuple[float, tuple[tuple[int, int], ...]]], factor: float
) -> None:
    rung = Rung(share=0.5)
    for number, (share, own) in enumerate(arrivals):
        seen = [other for where, other in arrivals[: number + 1] if abs(where - share) < 0.035]
        pairs = [list(zip(other, own, strict=True)) for other in seen]
        better = sum(
            all(a <= b for (a, _), (b, _) in pair)
            and any(a < b and (b - a) ** 2 > e**2 + f**2 for (a, e), (b, f) in pair)
            for pair in pairs
        )
        is_among_best = better < math.ceil(len(seen) / factor)
        losses, errors = zip(*own, strict=True)
        admitted = rung.admits(number, share, losses, errors, factor)
        assert admitted == (len(seen) < factor or is_among_best)


def decisions(
    curves: list[list[Measurement]], arrivals: list[int], kills: Collection[int] = ()
) -> tuple[dict[int, Outcome], list[object]]:
    """How the trials of a sweep are ended, and what its rungs hold at the end.

    Args:
        curves: what each trial measures as long as it runs.
        arrivals: whose measurement arrives next.
        kills: after which arrivals the driver dies, with the measurement in the ledger and
            nothing done about it.
    """
    rule, ends = SuccessiveHalving(CONFIG, constraints=LIMITS), {}
    ledger: dict[int, list[Measurement]] = {}
    for time, number in enumerate(arrivals):
        if number in ends:
            continue
        history = ledger.setdefault(number, [])
        history.append(curves[number][len(history)].model_copy(update={"time": float(time)}))
        outcome = rule.decide(number, history[-1], TRAIN)
        if time in kills:
            rule = SuccessiveHalving(CONFIG, constraints=LIMITS)
            outcomes = rule.replay(
                {trial: ledger[trial] for trial in sorted(ledger)}, dict.fromkeys(ledger, TRAIN)
            )
            assert ends.items() <= outcomes.items()
            ends |= outcomes
        elif outcome is not None:
            ends[number] = outcome
    rungs = [
        (r.share, sorted(tuple(losses) for _, losses, _ in r.seen), r.compared, r.allowed)
        for r in rule._get_rungs(TRAIN)
    ]
    return ends, rungs


@settings(max_examples=15)
@given(st.data())
def test_killed_sweep_decides_like_the_uninterrupted_one(data: st.DataObject) -> None:
    steps = range(5, TOTAL, 5)
    points = st.tuples(st.floats(0, 1), st.floats(0, 0.06))
    curve = st.lists(points, min_size=len(steps), max_size=len(steps))
    curves = [
        [at(s, gain, **{FORGETTING_MEAN: loss}) for s, (gain, loss) in zip(steps, c, strict=True)]
        for c in data.draw(st.lists(curve, min_size=1, max_size=8))
    ]
    arrivals = data.draw(st.permutations([n for n in range(len(curves)) for _ in steps]))
    kills = data.draw(st.sets(st.integers(0, len(arrivals) - 1), max_size=5))
    assert decisions(curves, arrivals, kills) == decisions(curves, arrivals)


def test_last_step_is_never_stopped() -> None:
    rule = SuccessiveHalving(CONFIG, constraints=LIMITS)
    assert rule.decide(0, at(TOTAL, 0.0, **{FORGETTING_MEAN: 0.9, TRAIN_LOSS: 1e9}), TRAIN) is None


def test_constraint_is_checked_once_per_rung() -> None:
    rule = SuccessiveHalving(CONFIG, constraints=LIMITS)
    assert (
        rule.decide(0, at(9, 0.9, **{FORGETTING_MEAN: 0.2}), TRAIN) is None
    )  # before the first rung
    assert rule.decide(0, at(10, 0.9), TRAIN) is None  # a point of the training curve
    assert rule.decide(0, at(12, None, **{FORGETTING_MEAN: 0.2}), TRAIN) is not None
    assert rule.decide(1, at(10, 0.9, **{FORGETTING_MEAN: 0.01}), TRAIN) is None
    assert rule.decide(1, at(20, 0.9, **{FORGETTING_MEAN: 0.2}), TRAIN) is None  # between two rungs
    assert rule.decide(1, at(30, 0.9, **{FORGETTING_MEAN: 0.2}), TRAIN) is not None


BASE = {IN_DOMAIN_ACC: 0.1, FORGETTING_MEAN: 0.0, KL_BASE_TO_TUNED: 0.0}


def constraints(*texts: str) -> list[Constraint]:
    return [Constraint.model_validate(text) for text in texts]


def test_constraint_that_the_base_breaks_stops_no_trial() -> None:
    named = constraints(f"{IN_DOMAIN_ACC} >= 0.5", f"{FORGETTING_MEAN} <= 0.05")
    rule = SuccessiveHalving(CONFIG, constraints=kept_by_base(named, BASE))
    for step, accuracy in [(10, 0.2), (30, 0.4), (60, 0.9)]:
        for number in range(4):
            assert rule.decide(number, at(step, accuracy, **{FORGETTING_MEAN: 0.0}), TRAIN) is None
    outcome = rule.decide(4, at(10, 0.9, **{FORGETTING_MEAN: 0.2}), TRAIN)
    assert outcome == stopped("forgetting/mean <= 0.05 is broken already at step 10")


@pytest.mark.parametrize(("loss", "stops"), [(5.9, False), (6.1, True)])
def test_exploding_loss_ends_the_trial(loss: float, stops: bool) -> None:
    rule = SuccessiveHalving(CONFIG)
    rule.decide(0, at(1, None, **{TRAIN_LOSS: 1.0}), TRAIN)
    outcome = rule.decide(0, at(2, None, **{TRAIN_LOSS: loss}), TRAIN)
    assert (outcome is not None) is stops
    if outcome is not None:
        assert outcome.status is TrialStatus.DIVERGED
        assert outcome.reason == "training loss 6.1 is over 6, and began at 1"
    without = SuccessiveHalving(CONFIG.model_copy(update={"loss_limit": None}))
    assert without.decide(0, at(2, None, **{TRAIN_LOSS: 1e9}), TRAIN) is None
