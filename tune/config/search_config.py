"""The `search` section of a sweep file: the recipes and the space of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from trainables.config import Frozen
from trainables.errors import Fault, as_written, did_you_mean
from trainables.methods import METHODS, Method
from tune.config.choices import choices_text, find_choice, is_searched
from tune.config.recipe_space import SPACES, LossSpace, RecipeSpace

LOSS = "loss"


def _method_tag(space: Any) -> str | None:
    """The tag of a space's class; None if it is no section, which has no tag."""
    method = space.get("method") if isinstance(space, dict) else getattr(space, "method", None)
    return None if method is None else f"<{method}>"


if TYPE_CHECKING:
    AnySpace = RecipeSpace
else:
    _tagged = [Annotated[space, Tag(f"<{name}>")] for name, space in SPACES.items()]
    AnySpace = Annotated[reduce(or_, _tagged), Discriminator(_method_tag)]


class SearchConfig(Frozen):
    """Which recipes are searched, each over its own space; the keys are their names.

    Attributes:
        first: points of these spaces to try before the sampler's own, in this order. Each gives a
            value of every axis that is searched, and `recipe` if there are several. Points that
            the sweep has tried, whatever the outcome, are not tried again.
        balance: whether every recipe gets the same number of trials and a sampler of its own;
            default: with more than two recipes.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, AnySpace] = Field(init=False)

    first: tuple[dict[str, Any], ...] = ()
    balance: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_methods(cls, values: Any) -> Any:
        """A recipe without a method has that of its name; null takes a recipe back."""
        if not isinstance(values, dict):
            return values
        return {
            key: {"method": key} | _without_null_method(value)
            if isinstance(value, dict) and key not in cls.model_fields
            else value
            for key, value in values.items()
            if value is not None or key in cls.model_fields
        }

    @model_validator(mode="after")
    def _searches_something(self) -> Self:
        if not self.recipes:
            known = f"known methods: {', '.join(METHODS.names)}"
            raise ValueError(f"give a space for at least one recipe; {known}")
        return self

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes, in the order of the file."""
        return tuple(self.__pydantic_extra__)

    @property
    def is_balanced(self) -> bool:
        """Whether every recipe gets the same number of trials."""
        return len(self.recipes) > 2 if self.balance is None else self.balance

    def space(self, recipe: str) -> RecipeSpace:
        """The space of one recipe."""
        return self.__pydantic_extra__[recipe]

    def method(self, recipe: str) -> type[Method]:
        """The method of one recipe."""
        return self.space(recipe).kind

    def only(self, recipe: str) -> SearchConfig:
        """The search of one recipe, with the first points that are its own."""
        first = [point for point in self.first if self.point_recipe(point) == recipe]
        return SearchConfig.model_validate({recipe: self.space(recipe), "first": first})

    def choices(self, recipe: str) -> Iterator[tuple[str, Any]]:
        """Every axis of a recipe that the sweep file gives, with its choices.

        Those of its losses are named `talr/floor` and count only with that loss.
        """
        space = self.space(recipe)
        yield from space.choices()
        yield LOSS, tuple(space.losses)
        for loss, own in space.losses.items():
            yield from loss_choices(loss, own)

    def grid_size(self, recipe: str) -> int:
        """Number of distinct points of a recipe whose axes are all lists."""
        space = self.space(recipe)
        losses = sum(_points(own.choices()) for own in space.losses.values())
        return losses * _points(space.choices())

    def point_recipe(self, point: Mapping[str, Any]) -> str | None:
        """The recipe of one of `first`; None if it does not say."""
        named = point.get("recipe", point.get("method"))
        return self.recipes[0] if named is None and len(self.recipes) == 1 else named

    def first_settings(self, point: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The recipe of one of `first`, and its choice on every axis that is searched."""
        recipe = self.point_recipe(point)
        assert recipe is not None  # noqa: S101 - `first_faults` has seen to it
        given = self._given(recipe, point)
        return recipe, {
            axis: find_choice(choices, given[axis])
            for axis, choices in self._counting(recipe, given)
            if is_searched(choices)
        }

    def first_faults(self) -> Iterator[Fault]:
        """Points of `first` that are outside these spaces."""
        for i, point in enumerate(self.first):
            yield from self._point_faults(point, f"search.first.{i}")

    def _point_faults(self, point: dict[str, Any], field: str) -> Iterator[Fault]:
        recipe = self.point_recipe(point)
        if recipe not in self.recipes:
            key = "recipe" if "recipe" in point else "method"
            rule = f"must be {' or '.join(self.recipes)}, got {recipe or 'none'}"
            yield Fault(f"{field}.{key}", rule, did_you_mean(recipe, self.recipes))
            return
        given = self._given(recipe, point)
        space, known = f"search.{recipe}", dict(self._counting(recipe, given))
        for axis, value in given.items():
            place = f"{field}.{axis}"
            if axis not in known:
                rule = f"is no axis of {space}, got {as_written(value)}"
                remedy = did_you_mean(axis, known) or f"known: {', '.join(known)}"
                yield Fault(place, rule, remedy)
            elif find_choice(known[axis], value) is None:
                rule = f"must be in {choices_text(known[axis])}, got {as_written(value)}"
                yield Fault(place, rule, f"let {space}.{axis} include it")
        for axis, choices in known.items():
            if axis not in given and is_searched(choices):
                remedy = f"take it from {choices_text(choices)}"
                yield Fault(f"{field}.{axis}", "is required and absent", remedy)

    def _given(self, recipe: str, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point's values by axis, as trials are given them; `loss: {talr: {floor: 0.1}}`."""
        space = self.space(recipe)
        given: dict[str, Any] = {}
        for axis, value in point.items():
            if axis in ("recipe", "method"):
                continue
            if axis == LOSS and isinstance(value, dict) and len(value) == 1:
                ((loss, own),) = value.items()
                given |= {LOSS: loss, **{f"{loss}/{key}": own[key] for key in own or ()}}
            else:
                given[axis] = _as_given(space, axis, value)
        return given

    def _counting(self, recipe: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """The axes that count for a point: those of its own loss, but of no other."""
        losses = tuple(self.space(recipe).losses)
        loss = given.get(LOSS, losses[0])
        for axis, choices in self.choices(recipe):
            if "/" not in axis or axis.startswith(f"{loss}/"):
                yield axis, choices


def _points(axes: Iterable[tuple[str, Any]]) -> int:
    return math.prod(len(choices) for _, choices in axes)


def loss_choices(loss: str, space: LossSpace) -> Iterator[tuple[str, Any]]:
    """The axes of a loss as those of a recipe, such as `talr/floor`."""
    for axis, choices in space.choices():
        yield f"{loss}/{axis}", choices


def _as_given(space: RecipeSpace, axis: str, value: Any) -> Any:
    """A value as trials are given it; as it is if it is none of the axis."""
    if axis in (LOSS, *type(space).model_fields):
        try:
            return value if axis == LOSS else space.read(axis, value)
        except ValidationError:
            return value
    return value


def _without_null_method(value: dict[str, Any]) -> dict[str, Any]:
    return {key: own for key, own in value.items() if key != "method" or own is not None}
