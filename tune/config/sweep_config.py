"""A validated sweep file: frozen models, one per section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from trainables.config import (
    ConfirmConfig,
    Constraint,
    DataConfig,
    DeepSpeedConfig,
    EvalSuite,
    Frozen,
    ModelConfig,
    Objective,
    TrainConfig,
)
from trainables.methods import Method
from trainables.records.schema import MOST_STRENGTH, Repair
from tune.config.limits import BudgetConfig, RecipeResources, ResourcesConfig
from tune.config.search_config import SearchConfig


def _other_strengths(strengths: tuple[float, ...]) -> tuple[float, ...]:
    """The strengths but 1, which is always evaluated, in rising order.

    Raises:
        ValueError: one is out of range, or repeated.
    """
    outside = [f"{strength:g}" for strength in strengths if not 0 < strength <= MOST_STRENGTH]
    if outside:
        rule = f"must be above 0 and at most {MOST_STRENGTH}, got {', '.join(outside)}"
        raise ValueError(f"{rule}; 0 is the base and 1 what training left")
    repeated = sorted({f"{strength:g}" for strength in strengths if strengths.count(strength) > 1})
    if repeated:
        raise ValueError(f"must differ, got {', '.join(repeated)} more than once; leave one out")
    return tuple(sorted(set(strengths) - {1.0}))


Strengths = Annotated[tuple[float, ...], AfterValidator(_other_strengths)]

_LONGEST_PROJECT, _NOT_IN_PROJECT = 128, "/\\#?%:"  # W&B's rules


class EarlyStoppingConfig(Frozen):
    """When a trial ends before its last step.

    A trial also ends if, at a rung, it breaks a constraint that the base satisfies, such as a bound
    on forgetting.

    Where trials differ by little more than the noise of their items, one in four of those that it
    ends would have been on the front: leave it out, or evaluate on more items.

    Attributes:
        metrics: what trials are compared by. Default: the objectives, by dominance. Or weights of a
            sum to maximize, such as `{in_domain/acc_mean: 1, forgetting/mean: -1}`, for a search
            for the best by that sum alone: it cuts off the rest of the front.
        reduction_factor: a trial ends if 1 / reduction_factor of the trials at a rung are better
            (with several objectives: dominate it, in at least one by more than the standard error
            of the difference, if the items give one); each rung is that many times later than the
            one before.
        first_rung: share of the training after which trials are first compared, with those of the
            same length that are evaluated at the same shares.
        loss_limit: a trial has diverged if its training loss exceeds this many times the sum of its
            first loss (step 1, before any update) and 1 nat/token.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    metrics: dict[str, float] | None = Field(default=None, min_length=1)
    reduction_factor: float = Field(default=3.0, gt=1)
    first_rung: float = Field(default=1 / 9, gt=0, lt=1)
    loss_limit: float | None = Field(default=3.0, gt=1)


def project_name(name: str) -> str:
    """The name, if W&B accepts it for a project.

    Raises:
        ValueError: it does not.
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
        entity: owner of the project; default the one that the sweep began in, else `WANDB_ENTITY`.
        tags: as in W&B; default `WANDB_TAGS`.
    """

    mode: Literal["online", "offline", "disabled"] | None = None
    project: Annotated[str, AfterValidator(project_name)] = "forgetting-sweeps"
    entity: str | None = None
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()


class RewindConfig(Frozen):
    """What a trained model is beside what training left.

    Attributes:
        strengths: at which it is evaluated as well, without more training: base + strength x
            update. Each costs one evaluation. Strength 1 always is.
        repair: how its weights are altered once all trials are done, each alteration evaluated as a
            point of its own, with weights that can be exported. `no_intruders`: intruder
            dimensions are scaled by 0.75 (2410.21228), for the trials that `inspect` would
            choose. `seed_mean`: the mean of a confirmed setting's trainings, which differ by
            their seeds; needs `confirm`. Both for low-rank adapters and full fine-tuning.
    """

    strengths: Strengths = ()
    repair: tuple[Repair, ...] = ()


class SweepConfig(Frozen):
    """A whole sweep file.

    Attributes:
        rewind: points to evaluate beside each trained model.
        constraints: bounds on the final metrics; if no trial keeps all of them, the nearest is
            named and none is recommended.
        sampler: as in Optuna, but `tpe` starts with points that cover each recipe's axes evenly,
            while recipes take turns in proportion to their axes.
        warm_start: folders of earlier sweeps with the same model, data and evaluation; the
            sampler learns from their trials that fit this search and were trained the same way,
            with any seed. Not for a grid.
        inspect: inspect the models of the recommended trial, of the Pareto front, and of the
            best of each recipe and capacity once the trials are done, as tasks on the workers;
            `python -m analysis inspect` does the same at any time.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]*$", max_length=64)
    seed: int = Field(default=0, ge=0, lt=2**31)  # repeats of a point count on from it
    model: ModelConfig
    data: DataConfig
    eval: EvalSuite
    search: SearchConfig
    objectives: tuple[Objective, ...] = Field(min_length=1)
    constraints: tuple[Constraint, ...] = ()
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    train: TrainConfig = TrainConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    budget: BudgetConfig = BudgetConfig()
    early_stopping: EarlyStoppingConfig | None = None
    rewind: RewindConfig | None = None
    confirm: ConfirmConfig | None = None
    warm_start: tuple[str, ...] = ()
    resources: ResourcesConfig = ResourcesConfig()
    wandb: WandbConfig = WandbConfig()
    inspect: bool = False

    def strengths(self, method: Method) -> tuple[float, ...]:
        """At which strengths, beside 1, a trained model of this method is evaluated."""
        can_scale = self.rewind is not None and method.why_not_scaled is None
        return self.rewind.strengths if self.rewind and can_scale else ()

    @property
    def repairs(self) -> tuple[Repair, ...]:
        """How trained weights are altered once all trials are done."""
        return self.rewind.repair if self.rewind else ()

    def batch_sizes(self, recipe: str) -> tuple[str, tuple[int, ...]]:
        """The field that sets a recipe's batch sizes, and the sizes."""
        if searched := self.search.space(recipe).batch_size:
            return f"search.{recipe}.batch_size", searched
        return "train.batch_size", (self.train.batch_size,)

    @property
    def most_replayed(self) -> DataConfig:
        """The data with the largest share of replayed samples, which are stored for all trials."""
        spaces = [self.search.space(recipe) for recipe in self.search.recipes]
        share = max(max(space.replay_share or (self.data.replay_share,)) for space in spaces)
        if not share:
            return self.data.model_copy(update={"replay": None})
        return self.data.replaying(share=share)

    def recipe_resources(self, recipe: str) -> RecipeResources:
        """The resources of one trial of a recipe."""
        return self.resources.of(recipe, self.search.method(recipe).name)

    def resources_field(self, recipe: str) -> str:
        """Where a recipe's resources are set, such as `resources.lora`."""
        return f"resources.{self.resources.key(recipe, self.search.method(recipe).name)}"
