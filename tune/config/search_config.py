"""The `search` section of a sweep file: the methods and the space of each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from trainables.config import Frozen, Method


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
        raise ValueError(
            f"must be all-linear or a list of module names, got {value!r}; "
            "one choice of two modules reads [[q_proj, v_proj]]"
        )
    # Neither their order nor a list around the word makes another choice.
    return "all-linear" if set(value) == {"all-linear"} or not is_list else sorted(set(value))


def _range_or_list(value: Any) -> str:
    return "<range>" if isinstance(value, (dict, LogUniform)) else "<list>"


_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Modules = Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_module_choice)]
_NotEmpty = Field(min_length=1)
_Distinct = AfterValidator(_distinct)
_OneOrMore = BeforeValidator(_values)
Rates = Annotated[tuple[_Rate, ...], _NotEmpty, _Distinct, _OneOrMore]
Counts = Annotated[tuple[_Count, ...], _NotEmpty, _Distinct, _OneOrMore]
Shares = Annotated[tuple[_Share, ...], _NotEmpty, _Distinct, _OneOrMore]
Decays = Annotated[tuple[_Decay, ...], _NotEmpty, _Distinct, _OneOrMore]
Flags = Annotated[tuple[bool, ...], _NotEmpty, _Distinct, _OneOrMore]
ModuleChoices = Annotated[tuple[_Modules, ...], _NotEmpty, _Distinct, _OneOrMore]
# The tags keep pydantic from trying both members and reporting errors for each.
LearningRates = Annotated[
    Annotated[LogUniform, Tag("<range>")] | Annotated[Rates, Tag("<list>")],
    Discriminator(_range_or_list),
]


class MethodSpace(Frozen):
    """What every method searches, full fine-tuning no more; a list with one value is a constant.

    Attributes:
        learning_rate: `{low, high}` on a log scale, or a list of values.
        batch_size, epochs, warmup, weight_decay: replace those of `train`.
    """

    learning_rate: LearningRates
    batch_size: Counts | None = None
    epochs: Rates | None = None
    warmup: Shares | None = None
    weight_decay: Decays | None = None


class LoraSpace(MethodSpace):
    """The search space of LoRA.

    Attributes:
        rank: values to choose from.
        alpha: values to choose from; exactly one of this and `alpha_ratio` is given.
        alpha_ratio: values of alpha / rank to choose from.
        target_modules: choices, each `all-linear` or a list of module names.
    """

    rank: Counts
    alpha: Rates | None = None
    alpha_ratio: Rates | None = None
    target_modules: ModuleChoices = ("all-linear",)
    dropout: Shares = (0.0,)
    rslora: Flags = (False,)
    dora: Flags = (False,)

    @model_validator(mode="after")
    def _one_rule_for_alpha(self) -> LoraSpace:
        if (self.alpha is None) == (self.alpha_ratio is None):
            given = "neither" if self.alpha is None else "both"
            raise ValueError(f"give exactly one of alpha and alpha_ratio, got {given}")
        return self


class SearchConfig(Frozen):
    """Which methods are searched, each over its own space."""

    lora: LoraSpace | None = None
    full: MethodSpace | None = None

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
