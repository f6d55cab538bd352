"""The first points of TPE, spread evenly over the search space.

Independent draws would leave some ranks untried and spend half of the trials on a recipe with a
single axis; tests/benchmarks/search_economy.py shows what that costs.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from tune.config.search_config import SearchConfig
from tune.search.space import axes


class InitialDesign(optuna.samplers.RandomSampler):
    """Draws one trial of the design.

    Recipes take turns in proportion to their axes. The points of each recipe are a scrambled Sobol
    sequence (Owen 1998), which covers each axis evenly.

    Args:
        search: the space.
        seed: the sweep's, which scrambles the sequences.
        position: of the trial in the search; the first ones are those of `search.first`.
    """

    def __init__(self, search: SearchConfig, seed: int, position: int) -> None:
        super().__init__(seed=seed)
        self._search, self._seed = search, seed
        *before, self._recipe = _turns(search, max(0, position - len(search.first)) + 1)
        self._index = before.count(self._recipe)

    def sample_independent(
        self, study: Any, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """The trial's value on an axis."""
        names = [axis for axis, _ in axes(self._search, self._recipe)]
        if name not in names:  # the recipe itself, as no other recipe's axes are asked for
            return self._recipe
        share = _sobol(f"{self._seed}:{self._recipe}", len(names), self._index)[names.index(name)]
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[int(share * len(distribution.choices))]
        assert isinstance(distribution, FloatDistribution)  # noqa: S101 - the space has no others
        low, high = math.log(distribution.low), math.log(distribution.high)
        rate = math.exp(low + share * (high - low))
        return min(max(rate, distribution.low), distribution.high)  # they round


def _turns(search: SearchConfig, count: int) -> list[str]:
    """The recipes of the first trials; each is the one that lacks most of its share."""
    weights = {each: max(1, len(list(axes(search, each)))) for each in search.recipes}
    lacks, turns = dict.fromkeys(weights, 0), []
    for _ in range(count):
        lacks = {recipe: lacks[recipe] + weights[recipe] for recipe in weights}
        turns.append(max(lacks, key=lacks.__getitem__))
        lacks[turns[-1]] -= sum(weights.values())
    return turns


def _sobol(key: str, axes_count: int, index: int) -> list[float]:
    """A point of a scrambled Sobol sequence, [axes], each in [0, 1)."""
    from scipy.stats import qmc

    digest = hashlib.sha256(key.encode()).digest()
    sequence = qmc.Sobol(axes_count, rng=int.from_bytes(digest[:4], "big"))
    if index:  # it warns of none
        sequence.fast_forward(index)
    point: list[float] = sequence.random(1)[0].tolist()
    return point
