"""The conditional space: which axes there are, and what a point becomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from builders import sweep_config
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution

from tune.config.search_config import SearchConfig
from tune.config.sweep_config import SweepConfig
from tune.search.space import (
    Misfit,
    Params,
    grid_size,
    point_loss,
    point_method,
    recorded_params,
    suggest,
)
from tune.search.trial_ids import TrialMaker


def search(**recipes: Any) -> SearchConfig:
    return SearchConfig.model_validate(recipes)


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
    lora = {"rank": [4, 8, 16], "alpha_ratio": [0.5, 1, 2], "learning_rate": 1e-4}
    config = sweep_config(search={"lora": lora})
    method = point_method(config, {"lora/rank": rank, "lora/alpha_ratio": ratio})
    assert method.columns["alpha"] == ratio * rank
    assert method.scale == ratio


def test_a_loss_is_searched_within_its_recipe() -> None:
    rate = {"learning_rate": 1e-4}
    config = sweep_config(
        search={"both": {"method": "full", "loss": ["sft", "dft"], **rate}, "full": rate}
    )
    found = list(points(config.search))
    assert {"recipe": "full"} in found
    assert {point_loss(config.search, point).name for point in found[:-1]} == {"sft", "dft"}
    assert {point["both/loss"] for point in found if point["recipe"] == "both"} == {"sft", "dft"}


def replaying(**axes: Any) -> SweepConfig:
    return sweep_config(
        search={"full": {"learning_rate": 1e-4, **axes}},
        data={"path": "rows.jsonl", "replay": {"path": "general.jsonl", "share": 0.2}},
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("control", [False, True])
def test_a_share_of_replay_is_searched_with_its_control(share: float, control: bool) -> None:
    config = replaying(replay_share=[0, 0.1, 0.3], replay_control=[False, True])
    params: Params = {"full/replay_share": share, "full/replay_control": control}
    trial = TrialMaker.for_estimates(config)(0, params, 1, 0)
    assert (trial.data.replay_share, trial.data.replay_control) == (share, control)
    assert config.most_replayed.replay_share == 0.3
    assert recorded_params(config, trial) == params
    with pytest.raises(Misfit, match=r"^data\.replay\.share"):
        recorded_params(replaying(), trial)


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
    losses = {"method": "lora", "loss": some(["sft", "dft"])}
    recipes = {"lora": adapter, "full": whole, "weighted": adapter | losses}
    chosen = draw(st.lists(st.sampled_from([*recipes]), min_size=1, unique=True))
    return search(**{name: recipes[name] for name in chosen})


@given(grids())
def test_grid_size_equals_a_count_of_points(space: SearchConfig) -> None:
    found = [tuple(sorted(params.items())) for params in points(space)]
    assert len(set(found)) == len(found) == grid_size(space)
