"""The method of a point, built from its choices, and the capacity that a budget gives it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from trainables.decoder_shape import ModelShape, linear_sizes
from trainables.methods import Method
from tune.config.recipe_space import PARAMETERS, RecipeSpace

Settings = Mapping[str, Any]
_FIRST = 128  # capacities below are all tried, of those above first the powers of two


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
    """The same with a small capacity instead of a budget, for what no capacity changes.

    Raises:
        ValidationError: the method refuses the settings.
    """
    chosen, kind = _chosen(space, settings), space.kind
    if chosen.pop(PARAMETERS, None) is None:
        return _with_ratios(kind, chosen)
    field = str(kind.capacity_field)
    for capacity in range(1, _FIRST):
        with suppress(ValueError):  # not every number need be a capacity
            return _with_ratios(kind, {**chosen, field: capacity})
    return _with_ratios(kind, {**chosen, field: _FIRST})


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
    """The method with the most trained parameters within a budget."""
    field = str(kind.capacity_field)

    @cache
    def parameters(capacity: int) -> float:
        """Trained parameters; infinite if the method has no such capacity on this base."""
        with suppress(ValueError):
            made = _with_ratios(kind, {**dict(chosen), field: capacity})
            return (made.misfit(shape) is None and made.parameters(shape)) or math.inf
        return math.inf

    def fits(capacity: int) -> bool:
        return parameters(capacity) <= budget

    most = max(budget, *(max(size) for size in linear_sizes(shape).values()))
    probes = [*range(1, _FIRST), *(_FIRST << n for n in range((most // _FIRST).bit_length() + 1))]
    fitting = [probe for probe in probes if fits(probe)]
    if not fitting:
        least = min(map(parameters, probes))
        raise OverBudget(None if least == math.inf else int(least))
    best = max(fitting, key=lambda probe: (parameters(probe), -probe))
    beyond = probes.index(best) + (-1 if kind.capacity_falls else 1)
    if 0 <= beyond < len(probes) and not fits(probes[beyond]):
        best = _last(parameters, budget, best, probes[beyond])
    return _with_ratios(kind, {**dict(chosen), field: best})


def _last(parameters: Callable[[int], float], budget: int, inside: int, outside: int) -> int:
    """The last capacity within a budget on the way from one that is to one that is not."""
    first, step = outside, 1 if inside > outside else -1
    is_every_number = True
    low = inside
    while abs(outside - low) > 1:
        middle = (low + outside) // 2
        is_every_number &= parameters(middle) < math.inf
        low, outside = (middle, outside) if parameters(middle) <= budget else (low, middle)
    if is_every_number:
        return low
    between = range(first + step, inside + step, step)
    return next(number for number in between if parameters(number) <= budget)
