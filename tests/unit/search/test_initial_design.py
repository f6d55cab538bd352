"""Where a search that learns from results starts."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
from builders import sweep_config
from simulated_search import ask, make_searcher

from trainables.records.schema import TrialRecord
from tune.config.sweep_config import SweepConfig

LOW, HIGH = 1e-5, 1e-3
RANKS = [2, 4, 8, 16, 32, 64, 128, 256]


def sweep(seed: int = 0, **search: Any) -> SweepConfig:
    rates = {"low": LOW, "high": HIGH}
    lora = {"rank": RANKS, "alpha_ratio": [1, 2], "learning_rate": rates}
    recipes = {"lora": lora, "full": {"learning_rate": rates}}
    return sweep_config(64, seed=seed, search=search or recipes)


def drawn(config: SweepConfig, count: int) -> list[TrialRecord]:
    """As many as run side by side, before any result is in."""
    searcher = make_searcher(config)
    return [ask(searcher) for _ in range(count)]


def of(records: list[TrialRecord], recipe: str) -> list[TrialRecord]:
    return [record for record in records if record.config.recipe == recipe]


@pytest.mark.parametrize("seed", range(4))
def test_every_rank_is_tried_before_any_is_repeated(seed: int) -> None:
    ranks = [record.params["lora/rank"] for record in of(drawn(sweep(seed), 11), "lora")][:8]
    assert sorted(ranks) == RANKS


@pytest.mark.parametrize("seed", range(4))
def test_learning_rates_are_stratified(seed: int) -> None:
    for method, count in (("lora", 16), ("full", 4)):
        rates = [r.config.learning_rate for r in of(drawn(sweep(seed), 22), method)][:count]
        strata = [int(count * log(rate / LOW) / log(HIGH / LOW)) for rate in rates]
        assert sorted(strata) == list(range(count))  # one in each of as many equal parts
