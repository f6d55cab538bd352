"""The `search` section of a sweep file: the methods and the space of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_serializer,
    model_validator,
)

from trainables.config import Frozen, Method, TrainConfig
from trainables.errors import Fault, as_written, nearest


class LogUniform(Frozen):
    """A range searched on a log scale, both ends included."""

    low: float = Field(gt=0)
    high: float = Field(gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _low_is_below_high(self) -> LogUniform:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        return self


def _values(value: Any) -> Any:
    """A single value stands for a list of one."""
    return value if isinstance(value, (list, tuple, dict)) else [value]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise ValueError(f"values must be distinct, got {repeated} more than once")
    return values


def _module_choice(value: Any) -> Any:
    is_list = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    if value != "all-linear" and not (is_list and value):
        remedy = "a list of two reads [q_proj, v_proj], and [[q_proj, v_proj]] as the only choice"
        if value == "all" or nearest(value, ["all-linear"], 0.8):  # LLaMA-Factory says all
            remedy = "did you mean all-linear?"
        raise ValueError(f"must be all-linear or a list of module names, got {value!r}; {remedy}")
    # The order of the names does not matter, nor does a list around all-linear.
    return "all-linear" if set(value) == {"all-linear"} or not is_list else sorted(set(value))


def _range_or_list(value: Any) -> str:
    return "<range>" if isinstance(value, (dict, LogUniform)) else "<list>"


_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Modules = Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_module_choice)]
_Value = TypeVar("_Value")
Choices = Annotated[
    tuple[_Value, ...],
    Field(min_length=1),
    AfterValidator(_distinct),
    BeforeValidator(_values),
]
# The tags keep pydantic from trying both members and reporting errors for each.
LearningRates = Annotated[
    Annotated[LogUniform, Tag("<range>")] | Annotated[Choices[_Rate], Tag("<list>")],
    Discriminator(_range_or_list),
]


class MethodSpace(Frozen):
    """The axes of every method, and all those of full fine-tuning; one value is a constant.

    Attributes:
        learning_rate: `{low, high}` on a log scale, or a list of values.
        batch_size, epochs, warmup, weight_decay: replace those of `train`.
    """

    learning_rate: LearningRates
    batch_size: Choices[_Count] | None = None
    epochs: Choices[_Rate] | None = None
    warmup: Choices[_Share] | None = None
    weight_decay: Choices[_Decay] | None = None


# Axes that replace a key of `train`.
TRAIN_AXES = tuple(axis for axis in MethodSpace.model_fields if axis in TrainConfig.model_fields)


class LoraSpace(MethodSpace):
    """The search space of LoRA.

    Attributes:
        rank: values to choose from.
        alpha: values to choose from; exactly one of this and `alpha_ratio` is given.
        alpha_ratio: values of alpha / rank to choose from.
        target_modules: choices, each `all-linear` or a list of module names.
    """

    rank: Choices[_Count]
    alpha: Choices[_Rate] | None = None
    alpha_ratio: Choices[_Rate] | None = None
    target_modules: Choices[_Modules] = ("all-linear",)
    dropout: Choices[_Share] = (0.0,)
    rslora: Choices[bool] = (False,)
    dora: Choices[bool] = (False,)

    @model_validator(mode="after")
    def _one_rule_for_alpha(self) -> LoraSpace:
        if (self.alpha is None) == (self.alpha_ratio is None):
            given = "neither" if self.alpha is None else "both; null takes one back"
            raise ValueError(f"give exactly one of alpha and alpha_ratio, got {given}")
        return self


class FirstPoint(Frozen):
    """A point that is tried before those that the sampler draws, such as today's settings.

    Attributes:
        method: may be left out if only one is searched.
        rank, ...: a value of each axis of the method; axes with one value may be left out.
    """

    method: Method | None = None
    rank: _Count | None = None
    alpha: _Rate | None = None
    alpha_ratio: _Rate | None = None
    target_modules: _Modules | None = None
    dropout: _Share | None = None
    rslora: bool | None = None
    dora: bool | None = None
    learning_rate: _Rate | None = None
    batch_size: _Count | None = None
    epochs: _Rate | None = None
    warmup: _Share | None = None
    weight_decay: _Decay | None = None

    @model_serializer
    def given(self) -> dict[str, Any]:
        """What the point says, as the sweep file has it."""
        return {name: value for name, value in self if value is not None}


class SearchConfig(Frozen):
    """Which methods are searched, each over its own space.

    Attributes:
        first: points of these spaces to try before the sampler's own, in this order. Points that
            the sweep has tried, whatever the outcome, are not tried again.
    """

    lora: LoraSpace | None = None
    full: MethodSpace | None = None
    first: tuple[FirstPoint, ...] = ()

    @model_validator(mode="after")
    def _searches_something(self) -> SearchConfig:
        if not self.methods:
            raise ValueError("give a space for at least one method: lora, full")
        return self

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that have a space."""
        return tuple(name for name in ("lora", "full") if getattr(self, name) is not None)

    def space(self, method: Method) -> MethodSpace:
        """The space of one method."""
        space: MethodSpace | None = self.lora if method == "lora" else self.full
        assert space is not None  # noqa: S101 - methods come from `methods`
        return space

    def choices(self, method: Method) -> Iterator[tuple[str, Any]]:
        """Every axis of a method that the sweep file gives, with its choices."""
        space = self.space(method)
        own = [axis for axis in type(space).model_fields if axis not in MethodSpace.model_fields]
        for axis in (*own, *MethodSpace.model_fields):
            if (choices := getattr(space, axis)) is not None:
                yield axis, choices

    def first_settings(self, point: FirstPoint) -> tuple[Method, dict[str, Any]]:
        """The method of one of `first`, and its choice on every axis that is searched."""
        method = point.method or self.methods[0]
        axes = [(axis, choices) for axis, choices in self.choices(method) if is_searched(choices)]
        return method, {axis: find_choice(choices, getattr(point, axis)) for axis, choices in axes}

    def first_faults(self) -> Iterator[Fault]:
        """Points of `first` that are outside these spaces."""
        for i, point in enumerate(self.first):
            yield from self._point_faults(point, f"search.first.{i}")

    def _point_faults(self, point: FirstPoint, field: str) -> Iterator[Fault]:
        given = point.given()
        method = given.pop("method", self.methods[0] if len(self.methods) == 1 else "none")
        if method not in self.methods:
            rule = f"must be {' or '.join(self.methods)}, got {method}"
            yield Fault(f"{field}.method", rule)
            return
        space, known = f"search.{method}", dict(self.choices(method))
        for axis, value in given.items():
            place = f"{field}.{axis}"
            if axis not in known:
                rule = f"is no axis of {space}, got {as_written(value)}"
                yield Fault(place, rule, f"known: {', '.join(known)}")
            elif find_choice(known[axis], value) is None:
                rule = f"must be in {choices_text(known[axis])}, got {as_written(value)}"
                yield Fault(place, rule, f"let {space}.{axis} include it")
        for axis, choices in known.items():
            if axis not in given and is_searched(choices):
                remedy = f"take it from {choices_text(choices)}"
                yield Fault(f"{field}.{axis}", "is required and absent", remedy)


def is_searched(choices: Any) -> bool:
    """Whether an axis has more than one value."""
    return isinstance(choices, LogUniform) or len(choices) > 1


def find_choice(choices: Any, value: Any) -> Any:
    """The choice that a value stands for; None if there is none."""
    if isinstance(choices, LogUniform):
        return value if choices.low <= value <= choices.high else None
    if isinstance(value, float):  # a ratio of alpha to rank comes back rounded
        return next((choice for choice in choices if math.isclose(choice, value)), None)
    return next((choice for choice in choices if choice == value), None)


def choices_text(choices: Any) -> str:
    """The values of an axis, such as `4, 8` or `1e-05 to 0.001`."""
    if isinstance(choices, LogUniform):
        return f"{choices.low:g} to {choices.high:g}"
    return ", ".join(map(as_written, choices))
