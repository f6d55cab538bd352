"""The conditional search space: Optuna distributions, and a trial's parts from its parameters.

Parameters are named `method`, `lora/rank`, `lora/learning_rate`, `full/learning_rate`, ...; those
of a method are sampled only if it is chosen. An axis with a single value is not searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from analysis.results.confirmation import planned_repeats
from trainables.config import LoraConfig, Method, TrainConfig, TrialConfig
from trainables.config.train_config import CHANGES_NO_RESULT
from trainables.decoder_shape import adapter_parameters
from trainables.models.model_shape import read_shape
from tune.config.search_config import (
    TRAIN_AXES,
    LogUniform,
    LoraSpace,
    MethodSpace,
    SearchConfig,
    choices_text,
    find_choice,
    is_searched,
)
from tune.config.sweep_config import SweepConfig

Param = str | int | float | bool
Params = dict[str, Param]
Choose = Callable[[str, BaseDistribution], Any]

_METHOD = "method"
_MODULES_SEPARATOR = "+"


def suggest(search: SearchConfig, choose: Choose) -> Params:
    """Walk the space; `choose` picks a value for each axis reached.

    Args:
        search: the space.
        choose: returns the value of a named axis, such as a sampled or a recorded one.
    """
    params: Params = {}
    if len(search.methods) > 1:
        params[_METHOD] = choose(_METHOD, CategoricalDistribution(search.methods))
    for name, distribution in axes(search, point_method(search, params)):
        params[name] = choose(name, distribution)
    return params


def distributions(search: SearchConfig, params: Params) -> dict[str, BaseDistribution]:
    """The distributions of the axes that these parameters were drawn from."""
    own = dict(axes(search, point_method(search, params)))
    if len(search.methods) == 1:
        return own
    return {_METHOD: CategoricalDistribution(search.methods), **own}


def point_method(search: SearchConfig, params: Params) -> Method:
    """The method of a point."""
    return next(method for method in search.methods if params.get(_METHOD, method) == method)


def axes(search: SearchConfig, method: Method) -> Iterator[tuple[str, BaseDistribution]]:
    """Name and distribution of every searched axis of a method."""
    for axis, choices in search.choices(method):
        name = f"{method}/{axis}"
        if isinstance(choices, LogUniform):
            yield name, FloatDistribution(choices.low, choices.high, log=True)
        elif is_searched(choices):
            yield name, CategoricalDistribution([_as_param(choice) for choice in choices])


def first_points(search: SearchConfig) -> list[Params]:
    """The points that the sweep file has tried first."""
    return [_params(search, *search.first_settings(point)) for point in search.first]


def planned_trials(config: SweepConfig) -> int:
    """Number of trials in the search; a grid has no more trials than points."""
    if config.sampler != "grid":
        return config.budget.trials
    return min(config.budget.trials, grid_size(config.search))


def planned_runs(config: SweepConfig) -> int:
    """Number of trials in the search and of repeats of its winners."""
    searched = planned_trials(config)
    return searched + planned_repeats(config.confirm, searched)


def grid_size(search: SearchConfig) -> int:
    """Number of distinct points of a grid's space, in which every axis is a list."""
    return sum(
        math.prod(len(choices) for _, choices in search.choices(method))
        for method in search.methods
    )


def lora_config(space: LoraSpace, params: Params) -> LoraConfig:
    """The adapter of a point."""

    def value(axis: str) -> Any:
        return _value(space, "lora", axis, params)

    settings = {axis: value(axis) for axis in LoraConfig.model_fields if axis != "alpha"}
    ratio = space.alpha is None
    settings["alpha"] = value("alpha_ratio") * settings["rank"] if ratio else value("alpha")
    settings["target_modules"] = _as_modules(settings["target_modules"])
    return LoraConfig.model_validate(settings)


def largest_point(config: SweepConfig, method: Method) -> Params:
    """The point of a method that takes the most memory, with the lowest learning rate."""

    def size(modules: Any) -> tuple[float, float]:
        """Of an adapter: its parameters if the model's shape is known, then its modules."""
        count = math.inf if modules == "all-linear" else len(modules)
        if (shape := read_shape(config.model)) is None:
            return count, count
        return adapter_parameters(shape, LoraConfig(rank=1, alpha=1, target_modules=modules)), count

    settings = {}
    for axis, choices in config.search.choices(method):
        if isinstance(choices, LogUniform):
            settings[axis] = choices.low
        elif is_searched(choices):
            settings[axis] = max(choices, key=size if axis == "target_modules" else None)
    return _params(config.search, method, settings)


def learning_rate(search: SearchConfig, params: Params) -> float:
    """The peak learning rate of a point."""
    method = point_method(search, params)
    return float(_value(search.space(method), method, "learning_rate", params))


def train_config(search: SearchConfig, train: TrainConfig, params: Params) -> TrainConfig:
    """The training of a point: the sweep's, with the searched values filled in."""
    method = point_method(search, params)
    space = search.space(method)
    update = {
        axis: _value(space, method, axis, params)
        for axis in TRAIN_AXES
        if getattr(space, axis) is not None
    }
    if "epochs" in update:
        update["steps"] = None  # a searched length replaces the fixed one
    return TrainConfig.model_validate(train.model_dump() | update)


class Misfit(ValueError):
    """A recorded trial is not a point of a search space.

    Attributes:
        field: the field of the sweep file that excludes it.
        reason: such as `has rank 64, which is not in 4, 8`.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def recorded_params(search: SearchConfig, train: TrainConfig, trial: TrialConfig) -> Params:
    """The parameters of a recorded trial in this space.

    Raises:
        Misfit: the trial is not in the space.
    """
    method = trial.method
    if method not in search.methods:
        raise Misfit(f"search.{method}", f"is trained by {method}, which is not searched")
    settings = {}
    for axis, choices in search.choices(method):
        value = _recorded(trial, axis)
        chosen = find_choice(choices, value)
        if chosen is None:
            reason = f"has {axis} {value}, which is not in {choices_text(choices)}"
            raise Misfit(f"search.{method}.{axis}", reason)
        if is_searched(choices):
            settings[axis] = chosen
    params = _params(search, method, settings)
    expected = train_config(search, train, params)
    for name, value in trial.train.model_dump(exclude=CHANGES_NO_RESULT).items():
        if (wanted := getattr(expected, name)) != value:
            raise Misfit(f"train.{name}", f"was trained with {name} {value}, not {wanted}")
    return params


def _params(search: SearchConfig, method: Method, settings: dict[str, Any]) -> Params:
    params: Params = {_METHOD: method} if len(search.methods) > 1 else {}
    return params | {f"{method}/{axis}": _as_param(choice) for axis, choice in settings.items()}


def _recorded(trial: TrialConfig, axis: str) -> Any:
    if axis == "learning_rate":
        return trial.learning_rate
    if axis in TRAIN_AXES:
        return getattr(trial.train, axis)
    lora = trial.lora
    assert lora is not None  # noqa: S101 - TrialConfig sees to it
    return lora.alpha / lora.rank if axis == "alpha_ratio" else getattr(lora, axis)


def _value(space: MethodSpace, method: Method, axis: str, params: Params) -> Any:
    name = f"{method}/{axis}"
    if name in params:
        return params[name]
    (constant,) = getattr(space, axis)
    return constant


def _as_param(choice: Any) -> Param:
    """A choice as Optuna can store it; lists of modules are joined."""
    return _MODULES_SEPARATOR.join(choice) if isinstance(choice, tuple) else choice


def _as_modules(choice: Any) -> Any:
    if choice == "all-linear" or isinstance(choice, tuple):
        return choice
    return tuple(choice.split(_MODULES_SEPARATOR))
