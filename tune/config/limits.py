"""What a sweep may spend, and which resources its trials take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from trainables.config import Frozen
from trainables.workers.gpu_types import SMALLEST_SHARE


def _number_or_auto(value: Any) -> Any:
    if value != "auto" and not str(value).isdigit():
        raise ValueError(f"must be a whole number >= 0, or auto, got {value!r}")
    return value


Slots = Annotated[Literal["auto"] | int, BeforeValidator(_number_or_auto)]


class BudgetConfig(Frozen):
    """When to stop starting trials; the first limit reached applies.

    Attributes:
        trials: number of trials in the search, including those of earlier starts; the repeats of
            `confirm` are extra.
        hours: wall-clock hours of one start of the command; checked before each new trial.
        gpu_hours: training and evaluation of all trials, also running ones; checked before each new
            trial. Not counted: loading the model, the final save, and work since the newest
            checkpoint that is lost with a process or node.
        retries: how often a trial that lost its process is retried, from its newest checkpoint,
            if it made no progress since the previous loss.
        minutes_per_report: a trial that neither reports nor runs its model for this long is
            considered hung; its process is ended and it is started again. null: never.
        checkpoint_gib: limit on the total size of the sweep's checkpoints, including best weights,
            excluding final weights. A trial keeps its newest two checkpoints until it has ended
            well, and the weights of its best evaluation. Over the limit these are deleted from the
            oldest trial on: first the best weights, then the older checkpoint. The newest complete
            checkpoint is always kept. Default: no limit.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    trials: int = Field(default=20, ge=1)
    hours: float | None = Field(default=None, gt=0)
    gpu_hours: float | None = Field(default=None, gt=0)
    retries: int = Field(default=3, ge=0)
    minutes_per_report: float | None = Field(default=120, gt=0, le=1e6)  # a clock's most
    checkpoint_gib: float | None = Field(default=None, gt=0)


class RecipeResources(Frozen):
    """What one trial of a recipe takes, or a host of several packed trials.

    Attributes:
        workers: processes that train it together. With an adapter each has a copy of the whole
            base. One GPU must hold the base in any case, for its evaluation.
        gpus_per_worker: 1, or a share such as 0.25 if several trials train on one GPU; default 1
            if the cluster has GPUs, else 0.
        cpus_per_worker: cores.
        accelerator_type: type of its GPUs as `ray status` shows it, such as H100; default any.
        slots: trials that train together on one copy of the base, in shared passes: a number, 0
            to train each on its own, or `auto` for the number measured to finish the sweep
            soonest on the hosts that are up (on one host if the cluster can still grow).
            `workers`, GPUs and CPUs are those of all slots together. With `auto`, what a sampler
            has seen when it draws depends on the measurement.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float | None = None
    cpus_per_worker: float = Field(default=1, ge=SMALLEST_SHARE)
    accelerator_type: str | None = Field(default=None, min_length=1)
    slots: Slots = 0


class ResourcesConfig(Frozen):
    """Resources per trial of each recipe, and how many trials may run in parallel.

    The other keys are recipes, or methods for their recipes without a key of their own.

    Attributes:
        max_concurrent: how many trials may run in parallel. Default: as many as fit.
        max_gpus: how many GPUs the sweep may hold at a time, including slot hosts and the base's
            evaluation. Default: all that the cluster has.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, RecipeResources] = Field(init=False)

    max_concurrent: int | None = Field(default=None, ge=1)
    max_gpus: int | None = Field(default=None, ge=0)

    @property
    def names(self) -> tuple[str, ...]:
        """The recipes and methods that have resources of their own."""
        return tuple(self.__pydantic_extra__)

    def key(self, recipe: str, method: str) -> str:
        """The name that a recipe's resources are given under; its own if there are none."""
        return next((name for name in (recipe, method) if name in self.names), recipe)

    def of(self, recipe: str, method: str) -> RecipeResources:
        """The resources of a recipe: its own, else those of its method."""
        return self.__pydantic_extra__.get(self.key(recipe, method), RecipeResources())
