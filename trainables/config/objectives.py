"""What a sweep aims for: objectives, constraints, and repeats of the winners."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator

from trainables.frozen import Frozen

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_CONSTRAINT = re.compile(r"\s*([^\s<>=]+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


class Objective(Frozen):
    """A logged metric to minimise or maximise."""

    metric: str
    mode: Literal["min", "max"]

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is strictly better than another."""
        return self.loss(value) < self.loss(than)

    def loss(self, value: float) -> float:
        """The value, negated if it is to be maximised: lower is better."""
        # Equal accuracies may differ by the order of their sum.
        return round(value if self.mode == "min" else -value, 12)


class Constraint(Frozen):
    """A bound on a logged metric, written `forgetting/mean <= 0.05` in the sweep file."""

    metric: str
    operator: Literal["<=", "<", ">=", ">"]
    bound: float = Field(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _CONSTRAINT.fullmatch(value)
        if match is None:
            raise ValueError(f"must read `metric <= number` (or <, >=, >), got {value!r}")
        metric, symbol, bound = match.groups()
        return {"metric": metric, "operator": symbol, "bound": bound}

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether the value is within the bound; 0.90 - 0.85 is within <= 0.05."""
        if math.isclose(value, self.bound, rel_tol=1e-9, abs_tol=1e-12):
            return self.operator in ("<=", ">=")
        return _OPERATORS[self.operator](value, self.bound)

    def violation(self, value: float) -> float:
        """How far beyond the bound, in the metric's unit; <= 0 where it holds."""
        if self.holds(value):
            return -abs(value - self.bound)
        return max(abs(value - self.bound), 1e-12)


class ConfirmConfig(Frozen):
    """Repeating the winners with other seeds once the search has ended.

    Attributes:
        top_k: how many points: the recommended one, the one recommended without it, and so on. One
            of them is then recommended by its mean over the repeats, never one that diverged.
        per_recipe: whether these are points of each recipe, instead of the sweep.
        seeds: repeat runs of each; the seed changes adapter weights, dropout and data order.
    """

    top_k: int = Field(default=3, ge=1)
    per_recipe: bool = False
    seeds: int = Field(default=5, ge=1)
