"""Points that the sweep file has tried before those that the sampler draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from simulated_search import (
    RATES,
    SAMPLERS,
    ask,
    completing,
    ended,
    judge,
    points,
    run,
    searcher_of,
    sweep,
    with_first,
)
from sweep_files import edited, faults, only_fault

from analysis.sweep_settings import SweepSettings
from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.same_sweep import check_same_sweep
from tune.config.search_config import SearchConfig
from tune.config.sweep_config import SweepConfig
from tune.search.earlier_trials import own_trials
from tune.search.space import Params, first_points, grid_size, params_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def params(records: list[TrialRecord]) -> list[Params]:
    return [record.params for record in records]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_they_come_first_in_their_order_and_count_as_trials(sampler: str) -> None:
    config = with_first(sampler, trials=8)
    records = run(searcher_of(config), completing)
    wanted = first_points(config.search)
    assert params(records[: len(wanted)]) == wanted
    assert len(records) == 8
    assert {record.config.seed for record in records} == {0}
    if sampler == "random":  # which learns nothing from them
        plain = run(searcher_of(with_first(sampler, trials=8, count=0)), completing)
        assert points(records[len(wanted) :]) == points(plain[len(wanted) :])


def test_they_are_trained_as_they_say() -> None:
    searcher = searcher_of(with_first("tpe"))
    one, two, three = (ask(searcher).config for _ in range(3))
    assert one.lora is not None
    assert three.lora is not None
    assert (one.method, one.lora.rank, one.lora.alpha, one.learning_rate) == ("lora", 8, 16, 2e-4)
    assert (two.method, two.lora, two.learning_rate) == ("full", None, 3e-5)
    assert (three.lora.rank, three.lora.alpha, three.learning_rate) == (32, 32, 1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("done", [0, 1, 2, 3, 9, 22])
def test_a_search_rebuilt_from_records_goes_on_as_the_uninterrupted_one(
    sampler: str, done: int
) -> None:
    config = with_first(sampler)
    whole = run(searcher_of(config))
    after = run(searcher_of(config, whole[:done]))
    assert points([*whole[:done], *after]) == points(whole)


@pytest.mark.parametrize("done", [1, 19, 21, 22, 41, 58])
def test_so_does_a_genetic_search_whose_first_generation_they_are_in(done: int) -> None:
    config = with_first("nsga2", trials=60)
    searcher = searcher_of(config)
    whole = run(searcher, completing)
    after = run(searcher_of(config, whole[:done]), completing)
    assert points([*whole[:done], *after]) == points(whole)
    complete = [t for t in searcher.study.trials if t.state is TrialState.COMPLETE]
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in complete]
    assert generations == [0] * 20 + [1] * 20 + [2] * 20


@pytest.mark.parametrize("done", [0, 1, 4, 10])
def test_of_a_grid_they_change_the_order_alone(done: int) -> None:
    """Also of one that is half done when they are added."""
    plain = with_first("grid", trials=100, count=0)
    before = run(searcher_of(plain))[:done]
    config = with_first("grid", trials=100)
    after = run(searcher_of(config, before))
    everything = {frozenset(p.items()) for p in params([*before, *after])}
    assert len(everything) == len([*before, *after]) == grid_size(config.search) == 11
    wanted = [point for point in first_points(config.search) if point not in params(before)]
    assert params(after)[: len(wanted)] == wanted


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_those_added_to_a_sweep_that_is_half_done_come_next(sampler: str) -> None:
    begun = with_first(sampler, count=1)
    before = run(searcher_of(begun), trials=3)
    config = with_first(sampler)
    check_same_sweep(begun.model_dump(mode="json"), config, Path("sweeps/tiny"))
    own = own_trials(config, before)
    searcher = searcher_of(config, own)
    wanted = [point for point in first_points(config.search) if point not in params(own)]
    assert params([ask(searcher) for _ in wanted]) == wanted
    whole = [*before, *run(searcher_of(config, own))]
    again = run(searcher_of(config, whole[:6]))  # a restart after the edit
    assert points([*whole[:6], *again]) == points(whole)


@pytest.mark.parametrize("status", [s for s in TrialStatus if s is not TrialStatus.RUNNING])
def test_one_is_not_tried_again_however_it_ended(status: TrialStatus) -> None:
    """`--retry-failed` runs it again under its own number, as any other trial."""
    config = with_first("tpe")
    searcher = searcher_of(config)
    first = ask(searcher)
    record = ended(first, status, {})
    searcher.trial_ended(record)
    _, second, third = first_points(config.search)
    assert params([ask(searcher), ask(searcher)]) == [second, third]
    assert ask(searcher_of(config, [record])).params == second
    retried = searcher_of(config, [], [record])
    again, other = ask(retried), ask(retried)
    assert (again.number, again.params, again.attempt) == (0, first.params, 2)
    assert (other.number, other.params) == (1, second)


def test_a_warm_start_that_has_tried_one_does_not_keep_it_from_this_sweep_s_report() -> None:
    config = with_first("tpe", trials=8)
    earlier = run(searcher_of(config), completing)
    records = run(searcher_of(config, warm=earlier), completing)
    assert params(records[:3]) == first_points(config.search)
    assert [record.config.seed for record in records[:3]] == [1, 1, 1]  # no run is made twice
    again = run(searcher_of(config, records[:2], warm=earlier), completing)
    assert points([*records[:2], *again]) == points(records)


def test_the_exported_study_holds_none_that_was_withdrawn() -> None:
    searcher = searcher_of(with_first("tpe"))
    first, _ = ask(searcher), ask(searcher)
    done = ended(first, *judge(first.config))
    searcher.trial_ended(done)
    searcher.sweep_ended([done])
    assert [trial.state for trial in searcher._study._trials()] == [TrialState.COMPLETE]


def test_the_search_ends_where_they_are_its_whole_budget() -> None:
    searcher = searcher_of(with_first("nsga2", trials=2))
    assert params(run(searcher)) == first_points(with_first("nsga2").search)
    assert searcher.suggest("any") == Searcher.FINISHED


def test_a_point_is_what_a_trial_of_it_is_recorded_as() -> None:
    space = {
        "rank": [4, 16],
        "alpha_ratio": [0.3, 2],
        "target_modules": ["all-linear", ["q_proj", "v_proj"]],
        "dropout": [0, 0.1],
        "rslora": [True, False],
        "dora": [False],
        "learning_rate": RATES,
        "batch_size": 8,
        "epochs": [1, 3],
    }
    point = {
        "rank": 16,
        "alpha_ratio": 0.3,
        "target_modules": ["v_proj", "q_proj"],
        "dropout": 0,
        "rslora": False,
        "dora": False,
        "learning_rate": 1e-3,
        "epochs": 3,
    }
    config = sweep("tpe", search={"lora": space, "first": [point]})
    [found] = first_points(config.search)
    assert found == {
        "lora/rank": 16,
        "lora/alpha_ratio": 0.3,
        "lora/target_modules": "q_proj+v_proj",
        "lora/dropout": 0.0,
        "lora/rslora": False,
        "lora/learning_rate": 1e-3,
        "lora/epochs": 3.0,
    }
    record = ask(searcher_of(config))
    assert record.params == found
    assert params_of(config.search, config.train, record.config) == found
    # Both ways to dump it say what the file says, and no more.
    dumped = config.model_dump(mode="json")["search"]["first"]
    assert dumped == [point | {"target_modules": ["q_proj", "v_proj"]}]
    assert SearchConfig.model_validate(config.search.model_dump()) == config.search
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_analysis_counts_the_grid_without_them() -> None:
    config = with_first("grid", trials=100)
    assert SweepSettings.model_validate(config.model_dump(mode="json")).planned_trials == 11


BOTH: dict[str, Any] = {"full": {"learning_rate": [1e-5]}}


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (
            {"rank": 16, "learning_rate": 1e-4},
            "rank: must be in 4, 8, got 16; let search.lora.rank include it",
        ),
        (
            {"rank": 8, "learning_rate": 0.1},
            "learning_rate: must be in 1e-05 to 0.001, got 0.1; "
            "let search.lora.learning_rate include it",
        ),
        ({"rank": 8}, "learning_rate: is required and absent; take it from 1e-05 to 0.001"),
        ({"learning_rate": 1e-4}, "rank: is required and absent; take it from 4, 8"),
        (
            {"rank": 8, "learning_rate": 1e-4, "alpha_ratio": 1},
            "alpha_ratio: must be in 2, got 1; let search.lora.alpha_ratio include it",
        ),
        (
            {"rank": 8, "learning_rate": 1e-4, "alpha": 16},
            "alpha: is no axis of search.lora, got 16; known: rank, alpha_ratio, "
            "target_modules, dropout, rslora, dora, learning_rate",
        ),
        (
            {"rank": 8, "learning_rate": 1e-4, "target_modules": [["q_proj"]]},
            "target_modules: must be all-linear or a list of module names, got [['q_proj']]; "
            "a list of two reads [q_proj, v_proj], and [[q_proj, v_proj]] as the only choice",
        ),
        (
            {"rank": 8, "learning_rate": 1e-4, "target_modules": ["q_proj", "v_proj"]},
            "target_modules: must be in all-linear, got [q_proj, v_proj]; "
            "let search.lora.target_modules include it",
        ),
        (
            {"rank": 8, "learning_rate": 1e-4, "dora": True},
            "dora: must be in false, got true; let search.lora.dora include it",
        ),
        (
            {"rank": 8, "learning_rate": 1e-4, "method": "full"},
            "method: must be lora, got full; search that, too, or remove the point",
        ),
        ({"rnak": 8, "rank": 8, "learning_rate": 1e-4}, "rnak: unknown key; did you mean rank?"),
        ({"rank": 0, "learning_rate": 1e-4}, "rank: must be >= 1, got 0"),
    ],
)
def test_a_point_outside_the_search_is_refused(
    first: dict[str, Any], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(search__first=[{"rank": 4, "learning_rate": 1e-4}, first]))
    assert str(only_fault(file)).startswith(f"search.first.1.{told}")


def test_all_faults_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    good = {"method": "lora", "rank": 4, "learning_rate": 1e-4}
    bad = {"method": "lora", "rank": 5, "learning_rate": 1.0, "batch_size": 8}
    whole = {"method": "full", "rank": 4}
    first = [good, bad, good | {"alpha_ratio": 2}, {"learning_rate": 1e-5}, whole]
    file.write_text(
        edited(search=BOTH | {"lora": {"rank": [4, 8], "alpha_ratio": 2, "learning_rate": RATES}})
    )
    found = faults(file, f"search.first={first}", "budget.trials=4", "sampler=grid")
    assert {fault.field: f"{fault.rule}; {fault.remedy}" for fault in found} == {
        "search.lora.learning_rate": "a grid needs a list of values, got a range; "
        "write [1e-4, 3e-4, 1e-3] or choose another sampler",
        "search.first.1.rank": "must be in 4, 8, got 5; let search.lora.rank include it",
        "search.first.1.learning_rate": "must be in 1e-05 to 0.001, got 1; "
        "let search.lora.learning_rate include it",
        "search.first.1.batch_size": "is no axis of search.lora, got 8; known: rank, alpha_ratio, "
        "target_modules, dropout, rslora, dora, learning_rate",
        "search.first.2": "must be another point than search.first.0; remove one",
        "search.first.3.method": "must be lora or full, got none; ",
        "search.first.4.rank": "is no axis of search.full, got 4; known: learning_rate",
        "search.first": "must hold no more points than budget.trials = 4, got 5; "
        "raise it, or remove some",
    }
    file.write_text(edited(search__first=[{"rank": 4, "learning_rate": 1.0}]))
    line = file.read_text().splitlines().index("    learning_rate: 1.0") + 1
    assert only_fault(file).location == f"{file}:{line}"
