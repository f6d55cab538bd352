"""The conditional space: which axes there are, and what a point becomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution

from trainables.config import TrainConfig
from tune.config.search_config import SearchConfig
from tune.search.space import (
    Params,
    axes,
    distributions,
    grid_size,
    lora_config,
    suggest,
    train_config,
)


def search(lora: dict[str, Any] | None = None, full: dict[str, Any] | None = None) -> SearchConfig:
    return SearchConfig.model_validate({"lora": lora, "full": full})


def lora(**changes: Any) -> SearchConfig:
    return search(lora={"rank": 8, "alpha_ratio": 2, "learning_rate": 1e-4} | changes)


def points(space: SearchConfig) -> Iterator[Params]:
    """Every point of a space without ranges, walked as a search would."""
    pending: list[list[Any]] = [[]]
    while pending:
        decided = pending.pop()
        position = itertools.count()

        def choose(
            name: str,
            distribution: BaseDistribution,
            decided: list[Any] = decided,
            position: Iterator[int] = position,
        ) -> Any:
            index = next(position)
            assert isinstance(distribution, CategoricalDistribution)
            if index == len(decided):
                pending.extend([*decided, choice] for choice in distribution.choices[1:])
                decided.append(distribution.choices[0])
            return decided[index]

        yield suggest(space, choose)


@given(st.sampled_from([4, 8, 16]), st.sampled_from([0.5, 1.0, 2.0]))
def test_alpha_is_the_ratio_times_the_rank(rank: int, ratio: float) -> None:
    space = lora(rank=[4, 8, 16], alpha_ratio=[0.5, 1, 2])
    assert space.lora is not None
    config = lora_config(space.lora, {"lora/rank": rank, "lora/alpha_ratio": ratio})
    assert config.alpha == ratio * rank
    assert config.scaling == ratio


def test_alpha_may_be_searched_instead_of_its_ratio() -> None:
    space = lora(alpha=[16, 32], alpha_ratio=None, rank=[4, 8])
    assert space.lora is not None
    assert "lora/alpha" in dict(axes(space, "lora"))
    config = lora_config(space.lora, {"lora/rank": 4, "lora/alpha": 32.0})
    assert (config.alpha, config.scaling) == (32.0, 8.0)


@pytest.mark.parametrize(
    "choices",
    [
        ["all-linear", ["q_proj", "v_proj"]],
        [["q_proj"], ["q_proj", "v_proj"], ["mlp.down_proj"]],
    ],
)
def test_lists_of_modules_come_back_from_parameters(choices: list[Any]) -> None:
    space = lora(target_modules=choices)
    assert space.lora is not None
    found = [lora_config(space.lora, params).target_modules for params in points(space)]
    wanted = ["all-linear" if choice == "all-linear" else tuple(choice) for choice in choices]
    assert sorted(found, key=str) == sorted(wanted, key=str)


def test_searched_training_settings_replace_fixed_ones() -> None:
    space = lora(batch_size=[16, 32], epochs=[1, 2])
    train = TrainConfig(batch_size=8, micro_batch_size=8, steps=100, warmup=0.2)
    made = train_config(space, train, {"lora/batch_size": 32, "lora/epochs": 2.0})
    assert (made.batch_size, made.epochs, made.steps, made.warmup) == (32, 2.0, None, 0.2)
    assert train_config(lora(), train, {}) == train


one_or_more = st.integers(1, 3)


@st.composite
def grids(draw: st.DrawFn) -> SearchConfig:
    """Spaces of lists, each axis with one value or more."""

    def some(values: list[Any]) -> list[Any]:
        return values[: draw(one_or_more)]

    adapter = {
        "rank": some([2, 4, 8]),
        "alpha_ratio": some([1, 2]),
        "learning_rate": some([1e-4, 2e-4, 3e-4]),
        "target_modules": some(["all-linear", ["q", "v"]]),
        "rslora": some([False, True]),
    }
    whole = {"learning_rate": some([1e-5, 1e-6]), "batch_size": some([4, 8, 16])}
    which = draw(st.sampled_from(["lora", "full", "both"]))
    return search(adapter if which != "full" else None, whole if which != "lora" else None)


@given(grids())
def test_grid_size_equals_a_count_of_points(space: SearchConfig) -> None:
    found = [tuple(sorted(params.items())) for params in points(space)]
    assert len(set(found)) == len(found) == grid_size(space)


@given(grids())
def test_distributions_are_those_of_the_draw(space: SearchConfig) -> None:
    for params in points(space):
        found = distributions(space, params)
        assert found.keys() == params.keys()
        again = suggest(space, lambda name, _, params=params: params[name])  # type: ignore[misc]
        assert again == params
        for name, value in params.items():
            distribution = found[name]
            assert distribution.to_external_repr(distribution.to_internal_repr(value)) == value
