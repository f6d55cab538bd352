"""A validated sweep file: frozen models, one per section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from trainables import metric_keys
from trainables.config import (
    DataConfig,
    DeepSpeedConfig,
    EvalSuite,
    Frozen,
    Method,
    ModelConfig,
    Objective,
    TrainConfig,
)
from trainables.config.training import shares_in_all
from trainables.errors import did_you_mean
from trainables.files.locations import is_local
from trainables.results.pareto import Constraint
from trainables.under_ray.gpu_types import SMALLEST_SHARE
from tune.config.limits import BudgetConfig, ResourcesConfig
from tune.config.search_config import LogUniform, SearchConfig

# As W&B has them; it takes no run of another project.
_LONGEST_PROJECT, _NOT_IN_PROJECT = 128, "/\\#?%:"


class EarlyStoppingConfig(Frozen):
    """When a trial ends before its last step.

    A trial also ends if it breaks a constraint that the untouched base satisfies, such as a bound
    on forgetting; one still to be reached by training, such as in-domain accuracy, ends no trial.

    Attributes:
        metrics: what trials are compared by. Default: the objectives, none of which is traded for
            another. Or weights of a sum to maximize, such as
            `{in_domain/acc_mean: 1, forgetting/mean: -1}`, for a search that wants only the best
            by that sum: it cuts off the rest of the front.
        reduction_factor: a trial ends if 1 / reduction_factor of the trials at a rung are better
            (with several objectives: dominate it); each rung is that many times later than the
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


class ConfirmConfig(Frozen):
    """Repeating the winners with other seeds once the search has ended.

    Attributes:
        top_k: how many points: the recommended one, the one recommended without it, and so on. One
            of them is then recommended by the means over its repeat runs, never one that diverged.
        seeds: repeat runs of each; the seed changes adapter weights, dropout and data order.
    """

    top_k: int = Field(default=3, ge=1)
    seeds: int = Field(default=5, ge=1)


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


_OF_RETENTION = (
    metric_keys.RETENTION_ACC,
    metric_keys.RETENTION_RATIO,
    metric_keys.FORGETTING_MEAN,
    metric_keys.FORGETTING_MAX,
    metric_keys.FORGETTING_POSITIVE,
)
_OF_OOD = (metric_keys.OOD_ACC, metric_keys.OOD_GAP)
_BETTER = {"min": "lower it is", "max": "higher it is"}
# Metrics of the evaluation: the base's evaluation has those that a trial's will have.
EVALUATED = (
    metric_keys.IN_DOMAIN_ACC,
    *_OF_RETENTION,
    *_OF_OOD,
    metric_keys.FORGETTING_NLL,
    metric_keys.KL_BASE_TO_TUNED,
)


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
            workers; `python -m analysis inside` does the same at any time.
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

    @model_validator(mode="after")
    def _parts_fit_together(self) -> SweepConfig:
        faults = [*self._bits_faults(), *self._batch_faults(), *self._gpu_faults()]
        faults += [*self._data_faults(), *self._metric_faults(), *self._sampler_faults()]
        faults += [*self._label_faults(), *self._objective_faults()]
        faults += [*self._weight_faults(), *self._rung_faults(), *self._first_faults()]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _bits_faults(self) -> list[str]:
        if not (self.model.load_in_4bit and self.search.full):
            return []
        rule = "must be null, as weights of 4 bits are not trained, got model.load_in_4bit: true"
        return [f"search.full: {rule}; search it in a sweep of its own, without load_in_4bit"]

    def _batch_faults(self) -> list[str]:
        faults = []
        for method in self.search.methods:
            searched = self.search.space(method).batch_size
            sizes = searched or (self.train.batch_size,)
            field = f"search.{method}.batch_size" if searched else "train.batch_size"
            workers = self.resources.of(method).workers
            per_pass = self.train.micro_batch_size * workers
            faults += [
                f"{field}: must be a multiple of train.micro_batch_size x "
                f"resources.{method}.workers = {per_pass}, got {size}"
                for size in sizes
                if size % per_pass
            ]
        return faults

    def _gpu_faults(self) -> list[str]:
        """A worker trains on one GPU, or on a share of one if it is its trial's only worker."""
        faults = []
        for method in self.search.methods:
            resources = self.resources.of(method)
            gpus, field = resources.gpus_per_worker, f"resources.{method}.gpus_per_worker"
            gpu_type = resources.accelerator_type
            others = [m for m in self.search.methods if self._takes_any_gpu(m)]
            if others and gpu_type is not None:
                faults.append(
                    f"resources.{others[0]}.accelerator_type: must be given as resources.{method} "
                    f"has one, got none; else its trials may hold the {gpu_type} that there are"
                )
            if gpus == 0 and gpu_type is not None:
                rule = f"must be above 0 on {gpu_type}, got 0"
                faults.append(f"{field}: {rule}; leave accelerator_type out to train on CPUs")
            if gpus is None or gpus in (0, 1):
                continue
            if gpus > 1:
                remedy = f"set resources.{method}.workers for a trial on several"
                faults.append(f"{field}: a worker trains on one GPU, got {gpus:g}; {remedy}")
            elif gpus < SMALLEST_SHARE:
                faults.append(f"{field}: must be 0 or at least {SMALLEST_SHARE:g}, got {gpus:g}")
            elif resources.workers > 1:
                rule = f"workers of one trial cannot share a GPU, got {gpus:g}"
                faults.append(f"{field}: {rule}; set it to 1, or workers to 1")
        return faults

    def _takes_any_gpu(self, method: Method) -> bool:
        resources = self.resources.of(method)
        return resources.accelerator_type is None and resources.gpus_per_worker != 0

    def _data_faults(self) -> list[str]:
        data, split = self.data, self.data.validation_split
        is_of_hub = data.validation_path is not None and not is_local(data.validation_path)
        if split is not None and not is_of_hub:
            return [
                f"data.validation_split: is of a hub data set, and validation_path is none, got "
                f"{split}; name one there, or leave the split out"
            ]
        if not (self.eval.in_domain or data.validation_path or data.validation_fraction):
            return [
                "data.validation_fraction: must be above 0, as eval.in_domain has no tasks, got 0; "
                "raise it, or name a data.validation_path"
            ]
        if data.validation_path != data.path or split not in (None, data.split):
            return []
        return [
            f"data.validation_path: holds the rows that are trained on, got {data.path} (split "
            f"{data.split}) for both; set validation_split, or leave it out for a "
            "validation_fraction of the rows"
        ]

    def _metric_faults(self) -> list[str]:
        known = self.logged_metrics()
        faults = []
        for field, metric in self.named_metrics():
            if metric in known or self._may_be_logged(metric):
                continue
            lacking = self._lacking(metric)
            remedy = f"it needs {lacking}" if lacking else did_you_mean(metric, known, 0.5)
            faults.append("; ".join(filter(None, [f"{field}: nothing logs {metric}", remedy])))
        return faults

    def _label_faults(self) -> list[str]:
        return [
            f"eval.retention.{i}.name: must not be {task.label}, whose forgetting would be logged "
            f"as another metric, {key}; give the task another"
            for i, task in enumerate(self.eval.retention)
            if (key := metric_keys.task_forgetting(task.label)) in metric_keys.METRICS
        ]

    def _objective_faults(self) -> list[str]:
        metrics, faults = [objective.metric for objective in self.objectives], []
        for i, objective in enumerate(self.objectives):
            metric, mode = objective.metric, objective.mode
            known = self._defined_metrics.get(metric)
            if metric in metrics[:i]:
                rule = f"each objective must be another metric, got {metric} again"
                faults.append(f"objectives.{i}.metric: {rule}")
            elif known and known.better not in ("none", mode):
                rule = f"{metric} is better the {_BETTER[known.better]}, got {mode}"
                faults.append(f"objectives.{i}.mode: {rule}; write {known.better}")
        return faults

    def _weight_faults(self) -> list[str]:
        """The sum of weighted metrics is maximized: a wrong sign would end the best trials."""
        weights = self.early_stopping.metrics if self.early_stopping else None
        field, faults = "early_stopping.metrics", []
        for metric, weight in (weights or {}).items():
            known = self._defined_metrics.get(metric)
            if weight == 0:
                faults.append(f"{field}: must not weigh {metric} by 0, got 0; leave it out")
            elif known and known.better == ("min" if weight > 0 else "max"):
                rule = f"{metric} is better the {_BETTER[known.better]}, got weight {weight:g}"
                faults.append(f"{field}: {rule}; write {-weight:g}")
        return faults

    def _rung_faults(self) -> list[str]:
        """Early stopping compares trials where all that it compares is measured."""
        stopping, every = self.early_stopping, self.train.report_every
        if stopping is None or every >= 1:
            return []
        names = stopping.metrics or [objective.metric for objective in self.objectives]
        last = every * (shares_in_all(every) - 1)
        if set(names) == {metric_keys.TRAIN_LOSS} or last >= stopping.first_rung - 1e-9:
            return []
        return [
            f"early_stopping.first_rung: no evaluation comes between it and the end, got "
            f"{stopping.first_rung:g}, and {every:g} for train.report_every; lower one of them"
        ]

    def _sampler_faults(self) -> list[str]:
        methods = self.search.methods
        if self.sampler == "nsga2" and len(methods) > 1:
            # It crosses only what all trials share, which for two methods is the method alone.
            return [
                f"sampler nsga2 searches one method, got {' and '.join(methods)}; "
                "take tpe, or search one method"
            ]
        if self.sampler != "grid":
            return []
        return [
            f"search.{method}.learning_rate: a grid needs a list of values, got a range; "
            "write [1e-4, 3e-4, 1e-3] or choose another sampler"
            for method in methods
            if isinstance(self.search.space(method).learning_rate, LogUniform)
        ]

    def _first_faults(self) -> list[str]:
        faults, points, trials = self.search.first_faults(), self.search.first, self.budget.trials
        if len(points) > trials:
            rule = f"must hold no more points than budget.trials = {trials}, got {len(points)}"
            faults.append(f"search.first: {rule}; raise it, or remove some")
        return faults

    def named_metrics(self) -> list[tuple[str, str]]:
        """The metrics that the sweep file names, as (field, metric)."""
        named = [(f"objectives.{i}.metric", o.metric) for i, o in enumerate(self.objectives)]
        named += [(f"constraints.{i}", c.metric) for i, c in enumerate(self.constraints)]
        if self.early_stopping:
            named += [("early_stopping.metrics", m) for m in self.early_stopping.metrics or ()]
        return named

    def logged_metrics(self) -> set[str]:
        """Keys that a trial of this sweep logs at its end, except scores of single tasks."""
        return {key for key in self._defined_metrics if not self._lacking(key)}

    @property
    def _defined_metrics(self) -> dict[str, metric_keys.Metric]:
        """Metrics whose better direction is known: all but scores of single tasks."""
        defined = dict(metric_keys.METRICS)
        for task in self.eval.retention:
            defined |= metric_keys.retention_metrics(task.label)
        return defined

    def _lacking(self, metric: str) -> str | None:
        """What the sweep file lacks for a metric to be logged, if anything."""
        data, suite = self.data, self.eval
        needs: tuple[tuple[str, object, tuple[str, ...]], ...] = (
            (
                "tasks in eval.in_domain; without any, name validation/loss, the lower the better",
                suite.in_domain,
                (metric_keys.IN_DOMAIN_ACC,),
            ),
            ("tasks in eval.in_domain", suite.in_domain, (metric_keys.OOD_GAP,)),
            ("tasks in eval.retention", suite.retention, _OF_RETENTION),
            ("tasks in eval.ood", suite.ood, _OF_OOD),
            ("eval.general_text", suite.general_text, (metric_keys.FORGETTING_NLL,)),
            ("eval.kl_prompts above 0", suite.kl_prompts, (metric_keys.KL_BASE_TO_TUNED,)),
            (
                "resources.lora.slots: 0, as trials in slots share their memory",
                self.search.lora is None or self.resources.lora.slots == 0,
                (metric_keys.MAX_RESERVED,),
            ),
            (
                "data.validation_path or data.validation_fraction above 0",
                data.validation_path or data.validation_fraction,
                (metric_keys.VALIDATION_LOSS,),
            ),
        )
        for name, given, metrics in needs:
            if metric in metrics and not given:
                return name
        return None

    def _may_be_logged(self, metric: str) -> bool:
        """Whether it may be a score of a task; only the base's evaluation can tell for sure."""
        return any(
            metric.startswith(metric_keys.task_score(role, task.label, ""))
            for role, task in self.eval.tasks()
        )
