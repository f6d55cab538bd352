"""Points of the search as complete trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainables.config import TrialConfig
from trainables.packing.planning import why_not_packed
from trainables.records.record_paths import SweepFolder
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import gpus_per_worker
from tune.search.space import (
    Params,
    data_config,
    largest_point,
    learning_rate,
    point_loss,
    point_method,
    point_recipe,
    train_config,
)


@dataclass(frozen=True)
class TrialMaker:
    """Turns points of a sweep's search into complete trials.

    Attributes:
        config: the sweep.
        sweep_id: the first part of each trial's id.
        folder: of the sweep.
        cluster: resources of the cluster.
    """

    config: SweepConfig
    sweep_id: str
    folder: SweepFolder
    cluster: dict[str, float]

    @classmethod
    def for_estimates(cls, config: SweepConfig) -> TrialMaker:
        """For trials without a folder and a cluster."""
        return cls(config, config.name, SweepFolder(Path(config.name)), {})

    def __call__(self, number: int, params: Params, attempt: int, seed: int) -> TrialConfig:
        """A point of the search as a complete trial."""
        config, folder = self.config, self.folder
        recipe, method = point_recipe(config.search, params), point_method(config, params)
        resources = config.recipe_resources(recipe)
        return TrialConfig(
            trial_id=f"{self.sweep_id}-{number:04d}",
            number=number,
            seed=seed,
            data_seed=config.seed,
            recipe=recipe,
            method=method,
            loss=point_loss(config.search, params),
            learning_rate=learning_rate(config.search, params),
            deepspeed=config.deepspeed if method.changes_base else None,
            model=config.model,
            data=data_config(config.search, config.data, params),
            eval=config.eval,
            train=train_config(config.search, config.train, params),
            strengths=config.strengths(method),
            workers=resources.workers,
            gpus_per_worker=gpus_per_worker(config, recipe, self.cluster),
            cpus_per_worker=resources.cpus_per_worker,
            output_dir=folder.absolute(folder.attempt(number, attempt)),
            earlier_attempts=tuple(
                folder.absolute(folder.attempt(number, earlier)) for earlier in range(1, attempt)
            ),
            objective=config.objectives[0],
            minutes_per_report=config.budget.minutes_per_report,
            base_dir=folder.absolute(folder.base),
        )


def why_no_trial_is_packed(config: SweepConfig, recipe: str) -> str | None:
    """Why some point of a recipe cannot train in a slot; None if all can."""
    modules = dict(config.search.choices(recipe)).get("target_modules", ())
    if len(modules) > 1:
        return f"search.{recipe}.target_modules differ, and slots of one base adapt the same layers"
    return why_not_packed(largest_trial(config, recipe))


def largest_trial(config: SweepConfig, recipe: str) -> TrialConfig:
    """The trial of a recipe that takes the most memory, without a folder."""
    params = largest_point(config, recipe)
    return TrialMaker.for_estimates(config)(0, params, 1, config.seed)
