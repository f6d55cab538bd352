"""The search over a made-up objective: what it suggests, is told, and rebuilds."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from builders import GAIN, LOSS, measurement
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher
from simulated_search import (
    GRID,
    Ending,
    Judge,
    ask,
    completing,
    ended,
    judge,
    make_searcher,
    points,
    run,
    stopping,
    sweep,
)

from trainables.config import TrialConfig
from trainables.records.schema import TrialStatus

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("done", [0, 1, 4, 7, 12, 19])
def test_search_rebuilt_from_records_goes_on_as_the_uninterrupted_one(
    sampler: str, done: int
) -> None:
    changes = {"search": GRID} if sampler == "grid" else {}
    config = sweep(sampler, **changes)
    whole = run(make_searcher(config))
    before = whole[:done]
    after = run(make_searcher(config, finished=before))
    assert points([*before, *after]) == points(whole)


def test_tpe_comes_closer_to_the_best_rate_than_random_search() -> None:
    def share(rate: float) -> float:
        return math.log(rate / 1e-5) / math.log(1e-3 / 1e-5)

    def near(trial: TrialConfig) -> Ending:
        off = abs(share(trial.learning_rate) - 0.7)
        return TrialStatus.COMPLETE, {GAIN: -off, LOSS: 0.0}

    def mean_distance(sampler: str) -> float:
        records = run(make_searcher(sweep(sampler, trials=80)), near)
        return fmean(abs(share(record.config.learning_rate) - 0.7) for record in records[-30:])

    assert mean_distance("tpe") < 0.7 * mean_distance("random")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_interrupted_trials_run_first_and_change_nothing_else(
    sampler: str,
) -> None:
    config = sweep(sampler)
    whole = run(make_searcher(config))
    searcher = make_searcher(config)
    before = run(searcher, trials=9)
    interrupted = ask(searcher)  # and the process is killed
    after = run(make_searcher(config, before, [interrupted]))
    assert points([*before, *after]) == points(whole)
    assert [record.attempt for record in after[:3]] == [2, 1, 1]
    assert after[0].config.output_dir == "/sweeps/tiny/trials/0009/attempt_2"
    assert after[0].config.earlier_attempts == ("/sweeps/tiny/trials/0009/attempt_1",)
    where = {"output_dir": "", "earlier_attempts": ()}
    assert after[0].config.model_copy(update=where) == interrupted.config.model_copy(update=where)


def always(status: TrialStatus, **metrics: float) -> Judge:
    return lambda trial: (status, {key.replace("__", "/"): v for key, v in metrics.items()})


def test_search_ends_after_its_gpu_hours() -> None:
    config = sweep(budget={"trials": 50, "gpu_hours": 2.2})
    records = run(make_searcher(config), always(TrialStatus.FAILED, cost__gpu_h=0.5))
    assert len(records) == 5
    assert run(make_searcher(config, records)) == []
    assert make_searcher(config, records).cut_short_by == "gpu_hours"
    assert make_searcher(config, records[:3]).cut_short_by is None
    enough = sweep(budget={"trials": 5, "gpu_hours": 2.2})
    assert make_searcher(enough, records).cut_short_by is None
    metrics = {GAIN: 0.5, LOSS: 0.1, "cost/gpu_h": 0.5}
    winners = [ended(record, TrialStatus.COMPLETE, metrics) for record in records]
    to_confirm = sweep(budget={"trials": 5, "gpu_hours": 2.2}, **CONFIRM)
    assert make_searcher(to_confirm, winners).cut_short_by == "gpu_hours"
    assert len(run(make_searcher(config, records[:3]), always(TrialStatus.CANCELLED))) == 47


def test_search_ends_after_its_hours_and_waits_for_trials() -> None:
    searcher = make_searcher(sweep(budget={"trials": 50, "hours": 2}))
    searcher._began = 0.0
    searcher._clock = lambda: 7199.0
    record = ask(searcher)
    searcher._clock = lambda: 7200.0
    assert searcher.suggest("any") is None  # it may have to be run again
    searcher.trial_ended(ended(record, *judge(record.config)))
    assert searcher.suggest("any") == Searcher.FINISHED
    assert searcher.is_done
    assert searcher.cut_short_by == "hours"


ONE_OBJECTIVE: dict[str, Any] = {"objectives": [{"metric": GAIN, "mode": "max"}]}


def test_trial_stopped_early_is_pruned_at_its_step() -> None:
    searcher = make_searcher(sweep(trials=6, **ONE_OBJECTIVE))
    records = run(searcher, stopping)
    trial = searcher.study.trials[1]
    assert trial.state is TrialState.PRUNED
    assert trial.intermediate_values == {10: 2.0}
    assert searcher.study.best_value == 0.1
    rebuilt = make_searcher(sweep(trials=6, **ONE_OBJECTIVE), records).study.trials[1]
    assert (rebuilt.state, rebuilt.values, rebuilt.intermediate_values) == (
        trial.state,
        trial.values,
        trial.intermediate_values,
    )


def feasible(trial: optuna.trial.FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())


@pytest.mark.parametrize("status", [TrialStatus.DIVERGED, TrialStatus.OUT_OF_MEMORY])
def test_diverged_trial_is_infeasible_however_good_it_was(
    status: TrialStatus,
) -> None:
    searcher = make_searcher(sweep(trials=6))

    def judge(trial: TrialConfig) -> Ending:
        if trial.number == 4:
            return status, {GAIN: 1.0, LOSS: -1.0}
        return TrialStatus.COMPLETE, {GAIN: 0.1 * trial.number, LOSS: 0.01 * trial.number}

    run(searcher, judge)
    trial = searcher.study.trials[4]
    assert trial.state is TrialState.COMPLETE
    assert not feasible(trial)
    assert trial.values == [0.0, 0.05]  # the worst of each
    assert trial.user_attrs["status"] == status
    assert 4 not in {best.number for best in searcher.study.best_trials}


def test_exported_journal_holds_the_same_trials(tmp_path: Path) -> None:
    searcher = make_searcher(sweep(constraints=[f"{LOSS} <= 0.05"], trials=12))
    run(searcher)
    file = tmp_path / "study.journal"
    for _ in range(2):  # the second replaces the first
        searcher.export(file)
    study = optuna.load_study(
        study_name="tiny", storage=JournalStorage(JournalFileBackend(str(file)))
    )
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == [GAIN, LOSS]
    for found, wanted in zip(study.trials, searcher.study.trials, strict=True):
        assert (found.number, found.state, found.values) == (
            wanted.number,
            wanted.state,
            wanted.values,
        )
        assert (found.params, found.constraints) == (wanted.params, wanted.constraints)
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


FEW_POINTS: dict[str, Any] = {
    "search": {"lora": {"rank": [2, 8], "alpha_ratio": 1, "learning_rate": [1e-4, 1e-3]}}
}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_point_is_run_again_only_with_another_seed(sampler: str) -> None:
    config = sweep(sampler, trials=12, **FEW_POINTS)
    records = run(make_searcher(config), completing)
    runs = [(str(record.params), record.config.seed) for record in records]
    assert len(runs) == len(set(runs)) == 12
    assert {record.config.seed for record in records[:2]} == {0}
    assert max(record.config.seed for record in records) >= 2  # four points, twelve trials
    assert {record.config.data_seed for record in records} == {0}
    again = run(make_searcher(config, records[:7]), lambda trial: (TrialStatus.COMPLETE, {}))
    assert [r.config.seed for r in again[:1]] == [records[7].config.seed]


def test_the_study_is_told_each_strength_as_a_trial() -> None:
    searcher = make_searcher(sweep(trials=6))
    record = ask(searcher)
    full = ended(record, TrialStatus.COMPLETE, {GAIN: 0.9, LOSS: 0.5})
    assert full.last is not None
    metrics = {GAIN: 0.8, LOSS: 0.1}
    half = full.last.model_copy(update={"strength": 0.5, "metrics": metrics})
    mended = half.model_copy(update={"repair": "no_intruders", "strength": 1.0})
    searcher.trial_ended(full.after(half).after(mended))
    assert [trial.values for trial in searcher.study.trials] == [[0.8, 0.1], [0.9, 0.5]]
    assert [trial.params for trial in searcher.study.trials] == [record.params] * 2


def test_a_resumed_trial_is_evaluated_at_the_strengths_that_are_left() -> None:
    config = sweep(trials=2, rewind={"strengths": [0.2, 0.4, 0.6]})
    first = ask(make_searcher(config))
    assert first.config.strengths == (0.2, 0.4, 0.6)
    point = measurement(4, metrics={GAIN: 0.1}).model_copy(update={"strength": 0.4})
    again = ask(make_searcher(config, (), [first.after(point)]))
    assert again.config.strengths == (0.2, 0.6)


CONFIRM: dict[str, Any] = {"confirm": {"top_k": 2, "seeds": 3}}


def test_winners_are_repeated_with_other_seeds_after_the_search() -> None:
    config = sweep(trials=8, **CONFIRM)
    records = run(make_searcher(config))
    search, confirming = records[:8], records[8:]
    assert all(record.confirms is None for record in search)
    assert [record.confirms is not None for record in confirming] == [True] * 6
    assert [record.number for record in confirming] == list(range(8, 14))
    by_number = {record.number: record for record in search}
    for record in confirming:
        assert record.confirms is not None
        winner = by_number[record.confirms]
        assert winner.status is TrialStatus.COMPLETE
        assert record.params == winner.params
        changed = {"seed", "trial_id", "number", "output_dir"}
        assert record.config.model_dump(exclude=changed) == winner.config.model_dump(
            exclude=changed
        )
    assert Counter(r.confirms for r in confirming) == Counter({r.confirms: 3 for r in confirming})
    assert {record.config.seed for record in confirming} == {1, 2, 3}


def test_confirmation_waits_for_the_search_and_goes_on_after_a_kill() -> None:
    config = sweep(trials=4, **CONFIRM)
    searcher = make_searcher(config)
    search = [ask(searcher) for _ in range(4)]
    assert searcher.suggest("any") is None
    complete = (TrialStatus.COMPLETE, {GAIN: 0.5, LOSS: 0.1})
    finished = [ended(record, *complete) for record in search]
    for record in finished:
        searcher.trial_ended(record)
    side_by_side = [ask(searcher) for _ in range(6)]
    assert searcher.suggest("any") is None
    rebuilt = make_searcher(
        config, [*finished, ended(side_by_side[0], *complete)], side_by_side[1:3]
    )
    assert not rebuilt.is_done
    again = run(rebuilt, lambda _: complete)
    assert [(r.number, r.confirms, r.config.seed) for r in again] == [
        (r.number, r.confirms, r.config.seed) for r in side_by_side[1:]
    ]
    assert rebuilt.is_done
    assert rebuilt.suggest("any") == Searcher.FINISHED


def test_warm_start_informs_the_sampler_and_costs_no_trial() -> None:
    config = sweep(trials=6)
    earlier = run(make_searcher(sweep(trials=20, seed=7)))
    warm = make_searcher(config, warm=earlier)
    records = run(warm)
    assert len(records) == 6
    assert points(records) != points(run(make_searcher(config)))
    assert len(warm.study.trials) == 26
    assert points(run(make_searcher(config, records[:3], warm=earlier))) == points(records[3:])
