"""The values of an axis of the search: a list of choices, or a range on a log scale."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from trainables.config import Frozen
from trainables.errors import as_written


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


def _range_or_list(value: Any) -> str:
    return "<range>" if isinstance(value, (dict, LogUniform)) else "<list>"


_Value = TypeVar("_Value")
Choices = Annotated[
    tuple[_Value, ...],
    Field(min_length=1),
    AfterValidator(_distinct),
    BeforeValidator(_values),
]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# The tags keep pydantic from trying both members and reporting errors for each.
LearningRates = Annotated[
    Annotated[LogUniform, Tag("<range>")] | Annotated[Choices[Rate], Tag("<list>")],
    Discriminator(_range_or_list),
]


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
