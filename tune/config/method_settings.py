"""The method of a point, built from its choices, and the capacity that a budget gives it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from trainables.decoder_shape import ModelShape, linear_sizes
from trainables.methods import Method
from tune.config.recipe_space import PARAMETERS, RecipeSpace

Settings = Mapping[str, Any]


class OverBudget(ValueError):
    """No capacity of a method fits a budget of parameters.

    Attributes:
        least: how many parameters it trains at least; None if it has no capacity on this base.
    """

    def __init__(self, least: int | None) -> None:
        super().__init__(f"at least {least} parameters")
        self.least = least


def method_settings(space: RecipeSpace, settings: Settings, shape: ModelShape | None) -> Method:
    """The method of a point.

    Args:
        space: of its recipe.
        settings: its choice on each axis; axes that are left out have their first one.
        shape: of the base, which a budget of `parameters` needs.

    Raises:
        OverBudget: no capacity fits the budget.
    """
    chosen = _chosen(space, settings)
    budget = chosen.pop(PARAMETERS, None)
    if budget is None:
        return _with_ratios(space.kind, chosen)
    assert shape is not None  # noqa: S101 - preflight has refused it
    return _largest(space.kind, tuple(chosen.items()), budget, shape)


def smallest_method(space: RecipeSpace, settings: Settings) -> Method:
    """The same with a small capacity instead of a budget, for what no capacity changes."""
    chosen = _chosen(space, settings)
    if chosen.pop(PARAMETERS, None) is not None:
        field = str(space.kind.capacity_field)
        chosen[field] = getattr(space.kind.example(), field)
    return _with_ratios(space.kind, chosen)


def all_settings(space: RecipeSpace) -> Iterator[dict[str, Any]]:
    """Every combination of choices of a method."""
    axes = dict(space.method_choices())
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _chosen(space: RecipeSpace, settings: Settings) -> dict[str, Any]:
    return {axis: settings.get(axis, choices[0]) for axis, choices in space.method_choices()}


def _with_ratios(kind: type[Method], chosen: Settings) -> Method:
    """The method of these fields; a ratio is multiplied by the field that it is a ratio of."""
    fields = dict(chosen)
    for ratio in kind.ratios:
        if ratio.axis in fields:
            fields[ratio.field] = fields.pop(ratio.axis) * fields[ratio.of]
    return kind.model_validate(fields)


@lru_cache(maxsize=1024)
def _largest(
    kind: type[Method], chosen: tuple[tuple[str, Any], ...], budget: int, shape: ModelShape
) -> Method:
    """The method with the most trained parameters within a budget.

    Powers of two bracket its capacity, and all within the bracket are tried, as a method need not
    have every number for a capacity.
    """
    field = str(kind.capacity_field)

    def method(capacity: int) -> tuple[Method, int] | None:
        """With its trained parameters; None if the method has no such capacity."""
        try:
            made = _with_ratios(kind, {**dict(chosen), field: capacity})
            return made, made.parameters(shape)
        except ValueError:
            return None

    most = max(max(size) for size in linear_sizes(shape).values())
    sizes = {n: size[1] for n in (1 << p for p in range(most.bit_length())) if (size := method(n))}
    fitting = [number for number, parameters in sizes.items() if parameters <= budget]
    for capacity in _bracket(kind.capacity_falls, fitting, most):
        if (made := method(capacity)) and made[1] <= budget:
            return made[0]
    raise OverBudget(min(sizes.values(), default=None))


def _bracket(falls: bool, fitting: list[int], most: int) -> range:
    """Capacities by falling number of trained parameters, down to the largest power that fits."""
    if falls:
        first = fitting[0] if fitting else most
        return range(first // 2 + 1, first + 1)
    last = fitting[-1] if fitting else 1
    return range(min(2 * last - 1, most) if fitting else most, last - 1, -1)
