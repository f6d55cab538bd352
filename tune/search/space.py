"""The conditional search space: Optuna distributions, and a trial's parts from its parameters.

Parameters are named `recipe`, `lora/rank`, `lora/learning_rate`, `talr/loss`, `talr/talr/floor`,
...; those of a recipe or a loss are sampled only if it is chosen. An axis with a single value is
not searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from analysis.results.confirmation import planned_repeats
from trainables.config import DataConfig, ModelShape, TrainConfig, TrialConfig
from trainables.config.train_config import CHANGES_NO_RESULT
from trainables.losses import LOSSES, Loss
from trainables.methods import Method
from trainables.models.model_shape import read_shape
from tune.config.choices import LogUniform, choices_text, find_choice, is_searched
from tune.config.method_settings import OverBudget, method_settings, smallest_method
from tune.config.recipe_space import (
    PARAMETERS,
    REPLAY_AXES,
    TRAIN_AXES,
    RecipeSpace,
    alternatives,
)
from tune.config.search_config import LOSS, SearchConfig, loss_choices
from tune.config.sweep_config import SweepConfig

Param = str | int | float | bool
Params = dict[str, Param]
Choose = Callable[[str, BaseDistribution], Any]
Settings = dict[str, Any]

RECIPE = "recipe"
_SEPARATOR = "+"


def suggest(search: SearchConfig, choose: Choose) -> Params:
    """Walk the space; `choose` picks a value for each axis reached.

    Args:
        search: the space.
        choose: returns the value of a named axis, such as a sampled or a recorded one.
    """
    params: Params = {}
    if len(search.recipes) > 1:
        params[RECIPE] = choose(RECIPE, CategoricalDistribution(search.recipes))
    recipe = point_recipe(search, params)
    for name, distribution in axes(search, recipe):
        if _counts(search, recipe, name, params):
            params[name] = choose(name, distribution)
    return params


def distributions(search: SearchConfig, params: Params) -> dict[str, BaseDistribution]:
    """The distributions of the axes that these parameters were drawn from."""
    found: dict[str, BaseDistribution] = {}

    def recorded(name: str, distribution: BaseDistribution) -> Param:
        found[name] = distribution
        return params[name]

    suggest(search, recorded)
    return found


def point_recipe(search: SearchConfig, params: Params) -> str:
    """The recipe of a point."""
    return next(recipe for recipe in search.recipes if params.get(RECIPE, recipe) == recipe)


def axes(search: SearchConfig, recipe: str) -> Iterator[tuple[str, BaseDistribution]]:
    """Name and distribution of every searched axis of a recipe, of all its losses too."""
    for axis, choices in search.choices(recipe):
        name = f"{recipe}/{axis}"
        if isinstance(choices, LogUniform):
            yield name, FloatDistribution(choices.low, choices.high, log=True)
        elif is_searched(choices):
            yield name, CategoricalDistribution([_as_param(choice) for choice in choices])


def _counts(search: SearchConfig, recipe: str, name: str, params: Params) -> bool:
    """Whether an axis counts for a point: those of another loss do not."""
    loss, separator, _ = name.removeprefix(f"{recipe}/").rpartition("/")
    return not separator or loss == _point_loss(search, recipe, params)


def _point_loss(search: SearchConfig, recipe: str, params: Params) -> str:
    return str(params.get(f"{recipe}/{LOSS}", next(iter(search.space(recipe).losses))))


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
    return searched + planned_repeats(config.confirm, searched, len(config.search.recipes))


def grid_size(search: SearchConfig) -> int:
    """Number of distinct points of a grid's space, in which every axis is a list."""
    return sum(map(search.grid_size, search.recipes))


def point_settings(search: SearchConfig, params: Params) -> Settings:
    """The choice of a point on every axis of its recipe that counts for it."""
    recipe = point_recipe(search, params)
    settings: Settings = {}
    for axis, choices in search.choices(recipe):
        name = f"{recipe}/{axis}"
        if not _counts(search, recipe, name, params):
            continue
        if isinstance(choices, LogUniform):
            settings[axis] = params[name]
        elif name in params:
            settings[axis] = next(each for each in choices if _as_param(each) == params[name])
        else:
            (settings[axis],) = choices
    return settings


def point_method(config: SweepConfig, params: Params) -> Method:
    """The method of a point with its settings."""
    space = config.search.space(point_recipe(config.search, params))
    return method_settings(space, point_settings(config.search, params), budget_shape(config))


def point_loss(search: SearchConfig, params: Params) -> Loss:
    """The loss of a point with its settings."""
    settings = point_settings(search, params)
    prefix = f"{settings[LOSS]}/"
    fields = {name: value for name, value in settings.items() if name.startswith(prefix)}
    return LOSSES.find(settings[LOSS]).model_validate(
        {name.removeprefix(prefix): value for name, value in fields.items()}
    )


def budget_shape(config: SweepConfig) -> ModelShape | None:
    """The base's shape if a recipe has a budget of parameters; None if none needs it."""
    spaces = map(config.search.space, config.search.recipes)
    has_budget = any(axis == PARAMETERS for each in spaces for axis, _ in each.method_choices())
    return read_shape(config.model) if has_budget else None


def largest_point(config: SweepConfig, recipe: str) -> Params:
    """The point of a recipe that takes the most memory, with the lowest learning rate."""
    search, shape = config.search, read_shape(config.model)
    space = search.space(recipe)

    def bulk(axis: str, choice: Any) -> tuple[float, float, Any]:
        """Of a choice: trained parameters if the shape is known, then modules or capacity."""
        parameters = 0
        if shape is not None and axis != PARAMETERS:
            parameters = smallest_method(space, {axis: choice}).parameters(shape)
        if isinstance(choice, (str, tuple)):
            return parameters, len(choice) if isinstance(choice, tuple) else math.inf, 0
        falls = axis == space.kind.capacity_field and space.kind.capacity_falls
        return parameters, 0, -choice if falls else choice

    settings: Settings = {LOSS: next(iter(space.losses))}
    for axis, choices in space.method_choices():
        settings[axis] = max(choices, key=partial(bulk, axis))
    for axis, choices in space.training_choices():
        settings[axis] = choices.low if isinstance(choices, LogUniform) else max(choices)
    loss = settings[LOSS]
    settings |= {axis: choices[0] for axis, choices in loss_choices(loss, space.losses[loss])}
    return _params(search, recipe, settings)


def learning_rate(search: SearchConfig, params: Params) -> float:
    """The peak learning rate of a point."""
    return float(point_settings(search, params)["learning_rate"])


def train_config(search: SearchConfig, train: TrainConfig, params: Params) -> TrainConfig:
    """The training of a point: the sweep's, with the searched values filled in."""
    settings = point_settings(search, params)
    update = {axis: settings[axis] for axis in TRAIN_AXES if axis in settings}
    if "epochs" in update:
        update["steps"] = None  # a searched length replaces the fixed one
    return TrainConfig.model_validate(train.model_dump() | update)


def data_config(search: SearchConfig, data: DataConfig, params: Params) -> DataConfig:
    """The data of a point: the sweep's, with the searched settings of `replay`."""
    settings = point_settings(search, params)
    return data.replaying(
        **{key: settings[axis] for axis, key in REPLAY_AXES.items() if axis in settings}
    )


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


def recorded_params(config: SweepConfig, trial: TrialConfig) -> Params:
    """The parameters of a recorded trial in a sweep's space.

    Raises:
        Misfit: the trial is not in the space.
    """
    search, recipe = config.search, trial.recipe
    if recipe not in search.recipes:
        raise Misfit(f"search.{recipe}", f"is trained by {recipe}, which is not searched")
    if trial.method.name != (wanted := search.method(recipe).name):
        raise Misfit(f"search.{recipe}.method", f"is trained by {trial.method.name}, not {wanted}")
    recorded = _recorded(config, trial)
    settings = {}
    for axis, choices in search.choices(recipe):
        if "/" in axis and not axis.startswith(f"{trial.loss.name}/"):
            continue
        value = recorded[axis]
        if (chosen := find_choice(choices, value)) is None:
            reason = f"has {axis} {value}, which is not in {choices_text(choices)}"
            raise Misfit(f"search.{recipe}.{axis.replace('/', '.')}", reason)
        settings[axis] = chosen
    params = _params(search, recipe, settings)
    expected = train_config(search, config.train, params)
    for name, value in trial.train.model_dump(exclude=CHANGES_NO_RESULT).items():
        if (wanted := getattr(expected, name)) != value:
            raise Misfit(f"train.{name}", f"was trained with {name} {value}, not {wanted}")
    data = data_config(search, config.data, params)
    for axis, key in REPLAY_AXES.items():
        if (value := getattr(trial.data, axis)) != (wanted := getattr(data, axis)):
            raise Misfit(f"data.replay.{key}", f"was trained with {axis} {value}, not {wanted}")
    return params


def _recorded(config: SweepConfig, trial: TrialConfig) -> Settings:
    """A recorded trial's value on every axis that it has one on."""
    method, loss = trial.method, trial.loss
    space = config.search.space(trial.recipe)
    fields = {name: getattr(method, name) for name in type(method).model_fields}
    ratios = {each.axis: fields[each.field] / fields[each.of] for each in method.ratios}
    of_loss = {f"{loss.name}/{name}": getattr(loss, name) for name in type(loss).model_fields}
    of_training = {axis: getattr(trial.train, axis) for axis in TRAIN_AXES}
    of_training |= {axis: getattr(trial.data, axis) for axis in REPLAY_AXES}
    found = {"learning_rate": trial.learning_rate, LOSS: loss.name, **of_training, **of_loss}
    return {PARAMETERS: _budget(config, space, method), **fields, **ratios, **found}


def _budget(config: SweepConfig, space: RecipeSpace, method: Method) -> int | str:
    """The budget of parameters that gives a method its capacity; else the capacity in words."""
    choices = dict(space.method_choices())
    shape = budget_shape(config)
    instead = {axis for pair in alternatives(space.kind).items() for axis in pair}
    own = {axis: getattr(method, axis) for axis in choices if axis not in instead}
    for budget in choices.get(PARAMETERS, ()):
        with suppress(OverBudget):
            given = method_settings(space, {**own, PARAMETERS: budget}, shape)
            if given.capacity == method.capacity:
                return int(budget)
    return f"that give {method.capacity}"


def _params(search: SearchConfig, recipe: str, settings: Settings) -> Params:
    params: Params = {RECIPE: recipe} if len(search.recipes) > 1 else {}
    choices = dict(search.choices(recipe))
    searched = {axis: choice for axis, choice in settings.items() if is_searched(choices[axis])}
    return params | {f"{recipe}/{axis}": _as_param(each) for axis, each in searched.items()}


def _as_param(choice: Any) -> Param:
    """A choice as Optuna can store it; lists of modules are joined."""
    return _SEPARATOR.join(map(str, choice)) if isinstance(choice, tuple) else choice
