"""A sweep file, validated: frozen models, one for each section."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from trainables import metric_keys
from trainables.config import (
    DataConfig,
    DeepSpeedConfig,
    EvalSuite,
    Frozen,
    Method,
    ModelConfig,
    TrainConfig,
)


class LogUniform(Frozen):
    """A range searched on a log scale; both ends belong to it."""

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
    return value


def _range_or_list(value: Any) -> str:
    return "<range>" if isinstance(value, (dict, LogUniform)) else "<list>"


_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Modules = Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_module_choice)]
_NotEmpty = Field(min_length=1)
_Distinct = AfterValidator(_distinct)
_OneOrMore = BeforeValidator(_values)
Rates = Annotated[tuple[_Rate, ...], _NotEmpty, _Distinct, _OneOrMore]
Counts = Annotated[tuple[_Count, ...], _NotEmpty, _Distinct, _OneOrMore]
Shares = Annotated[tuple[_Share, ...], _NotEmpty, _Distinct, _OneOrMore]
Flags = Annotated[tuple[bool, ...], _NotEmpty, _Distinct, _OneOrMore]
ModuleChoices = Annotated[tuple[_Modules, ...], _NotEmpty, _Distinct, _OneOrMore]
# The tags keep pydantic from trying both members and complaining about each.
LearningRates = Annotated[
    Annotated[LogUniform, Tag("<range>")] | Annotated[Rates, Tag("<list>")],
    Discriminator(_range_or_list),
]


class FullSpace(Frozen):
    """The search space of full fine-tuning; each list of one value is a constant.

    Attributes:
        learning_rate: `{low, high}` on a log scale, or a list of values.
        batch_size, epochs: replace those of `train`.
    """

    learning_rate: LearningRates
    batch_size: Counts | None = None
    epochs: Rates | None = None


class LoraSpace(FullSpace):
    """The search space of LoRA.

    Attributes:
        rank: values to choose from.
        alpha: values; or
        alpha_ratio: values of alpha / rank. Exactly one of the two.
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
    full: FullSpace | None = None

    @model_validator(mode="after")
    def _searches_something(self) -> SearchConfig:
        if not self.methods:
            raise ValueError("give a space for at least one method: lora, full")
        return self

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that have a space."""
        return tuple(name for name in ("lora", "full") if getattr(self, name) is not None)

    def space(self, method: Method) -> FullSpace:
        """The space of one method."""
        space: FullSpace | None = self.lora if method == "lora" else self.full
        assert space is not None  # noqa: S101 - methods come from `methods`
        return space


class Objective(Frozen):
    """A logged metric to minimise or maximise, at the end of a trial."""

    metric: str
    mode: Literal["min", "max"]


_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_CONSTRAINT = re.compile(r"\s*([^\s<>=]+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


class Constraint(Frozen):
    """A bound on a logged metric; in the sweep file written `forgetting/mean <= 0.05`."""

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
        """Whether the value is within the bound."""
        return _OPERATORS[self.operator](value, self.bound)

    def violation(self, value: float) -> float:
        """How far beyond the bound, in the metric's unit; <= 0 where it holds."""
        if self.holds(value):
            return min(0.0, -abs(value - self.bound))
        return max(abs(value - self.bound), 1e-12)


class BudgetConfig(Frozen):
    """When to stop asking for trials; whichever limit is reached first.

    Attributes:
        trials: how many in all.
        hours: wall-clock.
        gpu_hours: sum over trials; checked before each new one.
    """

    trials: int = Field(default=20, ge=1)
    hours: float | None = Field(default=None, gt=0)
    gpu_hours: float | None = Field(default=None, gt=0)


class MethodResources(Frozen):
    """What one trial of a method holds.

    Attributes:
        workers: processes that train it together.
        gpus_per_worker: default 1 where the cluster has GPUs, else 0.
        cpus_per_worker: cores.
    """

    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    cpus_per_worker: float = Field(default=1, gt=0)


class ResourcesConfig(Frozen):
    """Resources per trial and method, and how many trials may run at a time.

    Attributes:
        max_concurrent: default as many as fit.
    """

    lora: MethodResources = MethodResources()
    full: MethodResources = MethodResources()
    max_concurrent: int | None = Field(default=None, ge=1)

    def of(self, method: Method) -> MethodResources:
        """The resources of one method."""
        return self.lora if method == "lora" else self.full


class WandbConfig(Frozen):
    """Where runs are logged.

    Attributes:
        mode: default `online` where W&B finds a key, else `offline`.
        project, entity, tags: as in W&B.
    """

    mode: Literal["online", "offline", "disabled"] | None = None
    project: str = "forgetting-sweeps"
    entity: str | None = None
    tags: tuple[str, ...] = ()


class SweepConfig(Frozen):
    """A whole sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]*$", max_length=64)
    seed: int = Field(default=0, ge=0)
    model: ModelConfig
    data: DataConfig
    eval: EvalSuite
    search: SearchConfig
    objectives: tuple[Objective, ...] = Field(min_length=1)
    constraints: tuple[Constraint, ...] = ()
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    train: TrainConfig = TrainConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    budget: BudgetConfig = BudgetConfig()
    resources: ResourcesConfig = ResourcesConfig()
    wandb: WandbConfig = WandbConfig()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> SweepConfig:
        faults = [*self._batch_faults(), *self._metric_faults(), *self._grid_faults()]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _batch_faults(self) -> list[str]:
        faults = []
        for method in self.search.methods:
            sizes = self.search.space(method).batch_size or (self.train.batch_size,)
            workers = self.resources.of(method).workers
            per_pass = self.train.micro_batch_size * workers
            faults += [
                f"search.{method}.batch_size: must be a multiple of train.micro_batch_size x "
                f"resources.{method}.workers = {per_pass}, got {size}"
                for size in sizes
                if size % per_pass
            ]
        return faults

    def _metric_faults(self) -> list[str]:
        known = self.logged_metrics()
        named = [(f"objectives.{i}.metric", o.metric) for i, o in enumerate(self.objectives)]
        named += [(f"constraints.{i}", c.metric) for i, c in enumerate(self.constraints)]
        return [
            f"{field}: nothing logs {metric}{_near(metric, known)}"
            for field, metric in named
            if metric not in known and not self._may_be_logged(metric)
        ]

    def _grid_faults(self) -> list[str]:
        if self.sampler != "grid":
            return []
        return [
            f"search.{method}.learning_rate: a grid needs a list of values, got a range; "
            "write [1e-4, 3e-4, 1e-3] or choose another sampler"
            for method in self.search.methods
            if isinstance(self.search.space(method).learning_rate, LogUniform)
        ]

    def logged_metrics(self) -> set[str]:
        """Keys a trial of this sweep logs at its end, but for the scores of single tasks."""
        keys = set(metric_keys.METRICS)
        if not self.eval.retention:
            keys -= {key for key in keys if key.startswith(("forgetting/", "retention/"))}
        if not self.eval.ood:
            keys -= {metric_keys.OOD_ACC, metric_keys.OOD_GAP}
        if self.eval.general_text is None:
            keys.discard(metric_keys.FORGETTING_NLL)
        else:
            keys.add(metric_keys.FORGETTING_NLL)
        if self.eval.kl_prompts == 0:
            keys.discard(metric_keys.KL_BASE_TO_TUNED)
        for task in self.eval.retention:
            keys |= {
                metric_keys.task_forgetting(task.label),
                metric_keys.task_retention_ratio(task.label),
                metric_keys.task_forgetting_adjusted(task.label),
                metric_keys.task_flips(task.label, "forgotten"),
                metric_keys.task_flips(task.label, "gained"),
            }
        return keys

    def _may_be_logged(self, metric: str) -> bool:
        """Whether it is a score of one of the tasks; the base's evaluation tells for sure."""
        return any(
            metric.startswith(metric_keys.task_score(role, task.label, ""))
            for role, task in self.eval.tasks()
        )


def _near(metric: str, known: set[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(metric, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
