"""The points of `search.first` are tried before those that the sampler draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated_search import (
    RATES,
    SAMPLERS,
    THREE,
    ask,
    completing,
    ended,
    make_searcher,
    run,
    sweep,
    with_first,
)
from sweep_files import edited, only_fault

from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.sweep_config import SweepConfig
from tune.search.space import Params, first_points, recorded_params

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def params(records: list[TrialRecord]) -> list[Params]:
    return [record.params for record in records]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_first_points_come_first_and_count_as_trials(sampler: str) -> None:
    config = with_first(sampler, trials=8)
    records = run(make_searcher(config), completing)
    wanted = first_points(config.search)
    assert params(records[: len(wanted)]) == wanted
    assert len(records) == 8
    assert {record.config.seed for record in records} == {0}


@pytest.mark.parametrize("status", [TrialStatus.COMPLETE, TrialStatus.FAILED])
def test_a_tried_first_point_is_not_tried_again(status: TrialStatus) -> None:
    """`--retry-failed` runs it again under its own number, like any other trial."""
    config = with_first("tpe")
    searcher = make_searcher(config)
    first = ask(searcher)
    record = ended(first, status, {})
    searcher.trial_ended(record)
    _, second, third = first_points(config.search)
    assert params([ask(searcher), ask(searcher)]) == [second, third]
    assert ask(make_searcher(config, [record])).params == second
    retried = make_searcher(config, [], [record])
    again, other = ask(retried), ask(retried)
    assert (again.number, again.params, again.attempt) == (0, first.params, 2)
    assert (other.number, other.params) == (1, second)


def test_a_first_point_is_recorded_with_its_values() -> None:
    modules = ["all-linear", ["q_proj", "v_proj"]]
    space = {"rank": [4, 16], "alpha_ratio": [0.3, 2], "target_modules": modules}
    space |= {"learning_rate": RATES, "epochs": [1, 3]}
    point = {"rank": 16, "alpha_ratio": 0.3, "target_modules": ["v_proj", "q_proj"]}
    point |= {"learning_rate": 1e-3, "epochs": 3}
    config = sweep("tpe", search={"lora": space, "first": [point]})
    record = ask(make_searcher(config))
    assert record.params == {
        "lora/rank": 16,
        "lora/alpha_ratio": 0.3,
        "lora/target_modules": "q_proj+v_proj",
        "lora/learning_rate": 1e-3,
        "lora/epochs": 3.0,
    }
    assert recorded_params(config, record.config) == record.params
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_first_point_names_its_recipe_and_loss() -> None:
    point = {"recipe": "weighted", "rank": 8, "learning_rate": 1e-4, "loss": "dft"}
    config = sweep("tpe", search=THREE | {"first": [point]})
    record = ask(make_searcher(config))
    assert (record.config.recipe, record.config.loss.name) == ("weighted", "dft")
    assert record.params == {
        "recipe": "weighted",
        "weighted/rank": 8,
        "weighted/learning_rate": 1e-4,
        "weighted/loss": "dft",
    }
    assert recorded_params(config, record.config) == record.params


@pytest.mark.parametrize(
    ("point", "field", "fact"),
    [
        ({"rank": 8, "learning_rate": 1e-4, "loss": "dtf"}, "loss", "must be in sft"),
        ({"rank": 8, "learning_rate": 1e-4, "recipe": "lorra"}, "recipe", "did you mean lora?"),
        ({"rank": 16, "learning_rate": 1e-4}, "rank", "4, 8"),
        ({"rank": 8, "learning_rate": 0.1}, "learning_rate", "1e-05 to 0.001"),
        ({"rank": 8}, "learning_rate", "required"),
        ({"rank": 8, "learning_rate": 1e-4, "alpha": 16}, "alpha", "is no axis"),
        ({"rank": 8, "learning_rate": 1e-4, "method": "full"}, "method", "must be lora"),
        ({"rnak": 8, "rank": 8, "learning_rate": 1e-4}, "rnak", "did you mean rank?"),
    ],
)
def test_a_first_point_outside_the_search_is_refused(
    point: dict[str, Any], field: str, fact: str, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(search__first=[{"rank": 4, "learning_rate": 1e-4}, point]))
    fault = only_fault(file)
    assert fault.field == f"search.first.1.{field}"
    assert fact in str(fault)


def test_more_first_points_than_the_budget_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    points = [{"rank": rank, "learning_rate": 1e-4} for rank in (4, 8)]
    file.write_text(edited(search__first=points, budget__trials=1))
    assert only_fault(file).field == "search.first"
