"""A validated sweep file: frozen models, one per section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from trainables.config import (
    ConfirmConfig,
    Constraint,
    DataConfig,
    DeepSpeedConfig,
    EvalSuite,
    Frozen,
    Method,
    ModelConfig,
    Objective,
    TrainConfig,
)
from tune.config.cross_validation import DoNotFit, faults_between_sections
from tune.config.limits import BudgetConfig, ResourcesConfig
from tune.config.search_config import SearchConfig

# As W&B has them; it takes no run of another project.
_LONGEST_PROJECT, _NOT_IN_PROJECT = 128, "/\\#?%:"


class EarlyStoppingConfig(Frozen):
    """When a trial ends before its last step.

    A trial also ends if, where trials are compared, it breaks a constraint that the untouched base
    satisfies, such as a bound on forgetting; one still to be reached by training, such as in-domain
    accuracy, ends no trial.

    Where trials differ by little more than the noise of their items, of those that it ends one in
    four would have been of the front: leave it out there, or evaluate on more items.

    Attributes:
        metrics: what trials are compared by. Default: the objectives, none of which is traded for
            another. Or weights of a sum to maximize, such as
            `{in_domain/acc_mean: 1, forgetting/mean: -1}`, for a search that wants only the best
            by that sum: it cuts off the rest of the front.
        reduction_factor: a trial ends if 1 / reduction_factor of the trials at a rung are better
            (with several objectives: dominate it, in at least one by more than the standard error
            of the difference, where the items tell it); each rung is that many times later than the
            previous one.
        first_rung: share of the training after which trials are first compared: those of as many
            epochs, or of as many `train.steps`, where they are evaluated at equal shares of it.
        loss_limit: a trial has diverged whose training loss exceeds this many times the sum of its
            first and 1 nat/token; the first, at step 1 before any update, is the base model's, and
            of one batch alone.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    metrics: dict[str, float] | None = Field(default=None, min_length=1)
    reduction_factor: float = Field(default=3.0, gt=1)
    first_rung: float = Field(default=1 / 9, gt=0, lt=1)
    loss_limit: float | None = Field(default=3.0, gt=1)


def project_name(name: str) -> str:
    """The name, if W&B takes it for a project's.

    Raises:
        ValueError: it does not, and would take no run either.
    """
    if not 1 <= len(name) <= _LONGEST_PROJECT:
        raise ValueError(f"must have 1 to {_LONGEST_PROJECT} characters, got {len(name)}")
    if set(name) & set(_NOT_IN_PROJECT):
        shown = " ".join(_NOT_IN_PROJECT)
        remedy = "of ENTITY/PROJECT, the entity belongs in wandb.entity"
        raise ValueError(f"must hold none of {shown}, got {name}; {remedy}")
    return name


class WandbConfig(Frozen):
    """Where runs are logged.

    Attributes:
        mode: default `online` if W&B finds a key, else `offline`.
        project: default the one that the sweep began in, else `WANDB_PROJECT`, else this.
        entity: whose project it is; default as for `project`, of `WANDB_ENTITY`.
        tags: as in W&B; default `WANDB_TAGS`.
    """

    mode: Literal["online", "offline", "disabled"] | None = None
    project: Annotated[str, AfterValidator(project_name)] = "forgetting-sweeps"
    entity: str | None = None
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()


class SweepConfig(Frozen):
    """A whole sweep file.

    Attributes:
        constraints: bounds on the final metrics; if no trial keeps all of them, the nearest is
            named in place of a recommended one.
        sampler: as in Optuna, but that `tpe` starts with points that cover each method's axes
            evenly, while methods take turns in proportion to their axes. Where trials run in
            parallel, `nsga2` may go on with other points after a restart, as no record tells the
            generation that each was drawn in.
        warm_start: folders of earlier sweeps with the same model, data and evaluation; the
            sampler learns from those of their trials that fit this search and were trained alike,
            with any seed. Not for a grid.
        inspect: look inside the models of the recommended trial, of the Pareto front, and of the
            best of each rank and of full fine-tuning once the trials are done, as tasks on the
            workers; `python -m analysis inspect` does the same at any time.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]*$", max_length=64)
    seed: int = Field(default=0, ge=0, lt=2**31)  # repeats of a point count on from it
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
    early_stopping: EarlyStoppingConfig | None = None
    confirm: ConfirmConfig | None = None
    warm_start: tuple[str, ...] = ()
    resources: ResourcesConfig = ResourcesConfig()
    wandb: WandbConfig = WandbConfig()
    inspect: bool = False

    def batch_sizes(self, method: Method) -> tuple[str, tuple[int, ...]]:
        """The batch sizes that trials of a method have, after the field that gives them."""
        if searched := self.search.space(method).batch_size:
            return f"search.{method}.batch_size", searched
        return "train.batch_size", (self.train.batch_size,)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> SweepConfig:
        if faults := faults_between_sections(self):
            raise DoNotFit(faults)
        return self
