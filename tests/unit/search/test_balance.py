"""A balanced search: recipes get equally many trials, and learn from their own alone."""

from __future__ import annotations

from collections import Counter
from math import log
from pathlib import Path
from typing import Any

import pytest
from builders import GAIN, LOSS
from simulated_search import LORA, RATES, THREE, Ending, make_searcher, points, run, sweep

from trainables.config import TrialConfig
from trainables.records.schema import TrialRecord, TrialStatus

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def of(records: list[TrialRecord], recipe: str) -> list[TrialRecord]:
    return [record for record in records if record.config.recipe == recipe]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("count", [7, 23])
def test_recipes_get_equally_many_trials(sampler: str, count: int) -> None:
    first = [{"recipe": "full", "learning_rate": 3e-5}, {"recipe": "full", "learning_rate": 4e-5}]
    records = run(make_searcher(sweep(sampler, count, search=THREE | {"first": first})))
    counts = Counter(record.config.recipe for record in records)
    assert max(counts.values()) - min(counts[recipe] for recipe in THREE) <= 1


def test_two_recipes_are_balanced_on_request() -> None:
    two = {name: THREE[name] for name in ("lora", "full")}
    for balance, expected in ((True, {4}), (None, {2, 6})):  # in proportion to their axes
        records = run(make_searcher(sweep("tpe", 8, search=two | {"balance": balance})))
        assert {len(of(records, recipe)) for recipe in two} == expected


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("done", [1, 5, 14, 32])
def test_a_rebuilt_search_goes_on_as_the_undisturbed_one(sampler: str, done: int) -> None:
    config = sweep(sampler, 36, search=THREE)
    whole = run(make_searcher(config))
    before = whole[:done]
    assert points([*before, *run(make_searcher(config, before))]) == points(whole)


def test_each_recipe_starts_with_a_design_of_its_own() -> None:
    config = sweep("tpe", 24, search=THREE)
    rates = [record.config.learning_rate for record in of(run(make_searcher(config)), "full")][:4]
    low, high = RATES["low"], RATES["high"]
    assert sorted(int(4 * log(rate / low) / log(high / low)) for rate in rates) == [0, 1, 2, 3]


def test_a_recipe_learns_from_its_own_trials_alone() -> None:
    """What other recipes gained changes none of its points."""

    def judged(gain: float) -> Any:
        def judge(trial: TrialConfig) -> Ending:
            own = trial.recipe == "lora"
            reached = -abs(log(trial.learning_rate / 1e-4)) if own else gain * trial.number
            return TrialStatus.COMPLETE, {GAIN: reached, LOSS: 0.0}

        return judge

    config = sweep("tpe", 60, search=THREE)
    poor, good = (of(run(make_searcher(config), judged(gain)), "lora") for gain in (-1.0, 1.0))
    assert points(poor) == points(good)


def test_a_grid_of_recipes_tries_each_point_once() -> None:
    rates = [1e-5, 1e-4, 1e-3]
    recipes = {
        "lora": LORA | {"rank": [2, 8], "alpha_ratio": 1, "learning_rate": rates[:2]},
        "full": {"learning_rate": rates[:1]},
        "dft": {"method": "full", "loss": ["sft", "dft"], "learning_rate": rates},
    }
    config = sweep("grid", 30, search=recipes)
    records = run(make_searcher(config))
    assert len(records) == len({str(record.params) for record in records}) == 4 + 1 + 6
    assert {record.config.recipe for record in records[:3]} == set(recipes)


def test_the_exported_study_holds_all_recipes(tmp_path: Path) -> None:
    searcher = make_searcher(sweep("tpe", 9, search=THREE))
    records = run(searcher)
    searcher.export(tmp_path / "study.journal")
    assert [trial.params for trial in searcher.study.trials] == [r.params for r in records]


def test_winners_of_each_recipe_are_confirmed() -> None:
    confirm = {"top_k": 1, "seeds": 2, "per_recipe": True}
    records = run(make_searcher(sweep("tpe", 12, search=THREE, confirm=confirm)))
    repeats = [record for record in records if record.confirms is not None]
    assert Counter(record.config.recipe for record in repeats) == dict.fromkeys(THREE, 2)
