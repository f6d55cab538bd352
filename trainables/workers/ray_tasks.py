"""The work that a sweep runs on workers besides its trials."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from trainables.config import BaseRequirements, DataConfig, EvalSuite, ModelConfig
from trainables.errors import Fault, UserError, error_text, error_with_notes
from trainables.gc_pause import gc_paused
from trainables.process.lost_process import end_with_lost_device
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import BASE_RECORD, Measurement, Repair
from trainables.storage.disk import MAKE_ROOM, disk_full, is_disk_full
from trainables.storage.locations import node_cache
from trainables.storage.object_storage import is_store_error
from trainables.storage.storage import SEE_THE_STORE, open_storage
from trainables.workers.credentials import use_credentials
from trainables.workers.gpu_types import as_options
from trainables.workers.granted_gpus import check_granted_gpus
from trainables.workers.node import check_sees
from trainables.workers.trial_log import log_to


def evaluate_base_on_worker(
    model: ModelConfig,
    data: DataConfig,
    suite: EvalSuite,
    seed: int,
    cache: str,
    target: str,
    marker: str,
    requirements: BaseRequirements,
) -> UserError | None:
    """Run `evaluate_base` on a worker, for all trials.

    Its result and the tokenised data are copied to `target`. Errors are returned. If memory runs
    out, the evaluation's batch is halved, as in trials.

    Without a `cache` shared by all sweeps, the node's own is used. `marker` is a file that the
    driver has written at `target`.
    """
    use_credentials()

    with gc_paused():
        from trainables.data.tokenized import DATA_FOLDER, DATA_RECORD
        from trainables.evaluation.base_scores import evaluate_base
        from trainables.process.out_of_memory import evaluated_within_memory

    cache_dir = Path(cache) if cache else node_cache() / "bases"
    log = cache_dir / "base.log"

    def evaluate(smaller: EvalSuite) -> Path:
        return evaluate_base(model, data, smaller, seed, cache_dir, data_folder, requirements)

    def work() -> None:
        check_sees(target, marker)
        _check_deepspeed(requirements)
        folder = evaluated_within_memory(evaluate, suite)
        # Else another did this too, as where this node is cut off and lives on: trials may use it.
        check_sees(target, marker)
        storage = open_storage(target)
        for name in set(storage.children("")) - {marker}:  # of a start that came no further
            storage.remove(name)
        storage.publish(data_folder, DATA_FOLDER, last=DATA_RECORD)
        storage.publish(folder, "", last=BASE_RECORD)

    with TemporaryDirectory() as scratch:  # which nobody else may read, as they may its copy
        data_folder = Path(scratch) / DATA_FOLDER
        return _run_on_base(work, log)


def check_base_on_worker(model: ModelConfig, requirements: BaseRequirements) -> UserError | None:
    """Run `check_base` on a worker, for trials that ask more of a base than was asked before.

    Errors are returned.
    """
    use_credentials()

    with gc_paused():
        from trainables.evaluation.base_inputs import check_base

    log = node_cache() / "bases" / "base.log"

    def work() -> None:
        _check_deepspeed(requirements)
        check_base(model, requirements)

    return _run_on_base(work, log)


def _check_deepspeed(requirements: BaseRequirements) -> None:
    if requirements.deepspeed is not None:
        from trainables.training.deepspeed_check import check_deepspeed_settings

        check_deepspeed_settings(requirements.deepspeed)


def _run_on_base(work: Callable[[], None], log: Path) -> UserError | None:
    """The error that work with the base ends in, if it does; what it prints is in the log."""
    with log_to(log):
        try:
            check_granted_gpus()
            work()
            return None
        except UserError as error:
            return error
        except Exception as error:  # models, tasks and data sets run their own code: anything
            traceback.print_exc()
            end_with_lost_device()
            rule, remedy = f"failed{error_with_notes(error)}", f"the traceback is in {log}"
            if is_disk_full(error):
                rule, remedy = disk_full(error, log.parent), MAKE_ROOM
            elif is_store_error(error):
                remedy = f"{SEE_THE_STORE}; {remedy}"
            return UserError([Fault("the base's evaluation", rule, remedy)])


@ray.remote(num_cpus=0, max_retries=0)
def clear_trials(addresses: list[str]) -> None:
    """`clear_trial` for each of these trials, on the node that this runs on."""
    from trainables.training.attempt_folder import clear_trial

    for address in addresses:
        clear_trial(address)


def inspect_on_worker(sweep_dir: str, number: int) -> str | None:
    """Run `inspect_trial` on a worker; returns why something could not be inspected, if so."""
    use_credentials()

    with gc_paused():
        from trainables.inspection.inspect_trial import inspect_trial
    from trainables.inspection.inspection_records import InspectionFolder

    with log_to(InspectionFolder(Path(sweep_dir)).log(number)):
        try:
            check_granted_gpus()
            return inspect_trial(Path(sweep_dir), number).reason
        except Exception as error:  # the sweep is complete regardless
            traceback.print_exc()
            return error_text(error)


def repair_on_worker(
    sweep_dir: str, number: int, repair: Repair, repeats: tuple[int, ...]
) -> Measurement | str:
    """Run `repair_trial` on a worker; returns what was measured, or why it could not be done."""
    use_credentials()

    with gc_paused():
        from trainables.post_steps.repair_trial import repair_trial

    with log_to(SweepFolder(Path(sweep_dir)).trial(number) / f"{repair}.log"):
        try:
            check_granted_gpus()
            return repair_trial(Path(sweep_dir), number, repair, repeats)
        except Exception as error:  # the sweep is complete regardless
            traceback.print_exc()
            return error_text(error)


def as_task(function: Callable[..., Any], held: Mapping[str, float]) -> Any:
    """Make a function a task that holds these resources; retried if its process or node is lost.

    If it has a GPU, its process ends with it, as it would otherwise keep the GPU's memory. Ray
    ensures that only if GPUs are given to `ray.remote` rather than to `options`.
    """
    return ray.remote(**as_options(held), max_retries=3)(function)
