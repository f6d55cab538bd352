"""A trial of several workers: a group of Ray Train's."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainables.attempt_folder import on_this_node, publish_worker
from trainables.config import TrialConfig
from trainables.records import TrialResult
from trainables.reporter import Reporter
from trainables.under_ray.endings import root_cause
from trainables.under_ray.log import log_to
from trainables.under_ray.reporting import Watched, WorkerReporter

TrialFunction = Callable[[TrialConfig, Reporter], TrialResult]


def train_on_workers(trial: TrialConfig, here: TrialConfig) -> None:
    """Let Ray Train run the trial function in every worker of a group."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    gpus = trial.gpus_per_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config={"trial": trial.model_dump(mode="json")},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=trial.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": trial.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name="workers",  # no time stamp: a restart finds the same place
            storage_path=str(Path(here.output_dir).absolute()),
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        traceback.print_exc()
        raise root_cause(error) from None


def _work(loop_config: dict[str, Any]) -> None:
    """One worker of a group. Reports are a barrier for the group; rank 0's are forwarded."""
    import ray.train

    trial = on_this_node(TrialConfig.model_validate(loop_config["trial"]))
    rank = ray.train.get_context().get_world_rank()
    with log_to(Path(trial.output_dir) / f"worker_{rank}.log"):
        trial_function(trial)(trial, Watched(trial, WorkerReporter()))
    publish_worker(trial, rank)


def trial_function(trial: TrialConfig) -> TrialFunction:
    """What trains by the trial's method."""
    if trial.method == "lora":
        from trainables.lora import train_lora

        return train_lora
    from trainables.full_sft import train_full_sft

    return train_full_sft
