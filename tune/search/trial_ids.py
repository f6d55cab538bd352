"""Points of the search as complete trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainables.config import Method, TrialConfig
from trainables.packing.planning import why_not_packed
from trainables.records.record_paths import SweepFolder
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import gpus_per_worker
from tune.search.space import (
    Params,
    largest_point,
    learning_rate,
    lora_config,
    point_method,
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
        method = point_method(config.search, params)
        resources = config.resources.of(method)
        space = config.search.lora if method == "lora" else None
        return TrialConfig(
            trial_id=f"{self.sweep_id}-{number:04d}",
            number=number,
            seed=seed,
            data_seed=config.seed,
            method=method,
            learning_rate=learning_rate(config.search, params),
            lora=lora_config(space, params) if space else None,
            deepspeed=config.deepspeed if method == "full" else None,
            model=config.model,
            data=config.data,
            eval=config.eval,
            train=train_config(config.search, config.train, params),
            workers=resources.workers,
            gpus_per_worker=gpus_per_worker(config, method, self.cluster),
            cpus_per_worker=resources.cpus_per_worker,
            output_dir=folder.absolute(folder.attempt(number, attempt)),
            earlier_attempts=tuple(
                folder.absolute(folder.attempt(number, earlier)) for earlier in range(1, attempt)
            ),
            objective=config.objectives[0],
            minutes_per_report=config.budget.minutes_per_report,
            base_dir=folder.absolute(folder.base),
        )


def why_no_trial_is_packed(config: SweepConfig) -> str | None:
    """Why some LoRA point of the search cannot train in a slot; None if all can."""
    space = config.search.lora
    if space is None:
        return "LoRA is not searched"
    if len(space.target_modules) > 1:
        return "search.lora.target_modules differ, and slots of one base adapt the same layers"
    return why_not_packed(largest_trial(config, "lora"))


def largest_trial(config: SweepConfig, method: Method) -> TrialConfig:
    """The trial of a method that takes the most memory, without a folder."""
    params = largest_point(config, method)
    return TrialMaker.for_estimates(config)(0, params, 1, config.seed)
