"""The conditional space: which axes there are, and what a point becomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution

from tune.config.search_config import SearchConfig
from tune.search.space import (
    Params,
    grid_size,
    lora_config,
    suggest,
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
