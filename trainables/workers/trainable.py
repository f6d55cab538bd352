"""Tune's function trainable, which handles everything that can happen to one trial."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.tune

from trainables.config import TrialConfig
from trainables.errors import UserError
from trainables.gc_pause import gc_paused
from trainables.process import watchdog
from trainables.process.lost_process import end_with_lost_device
from trainables.records.schema import BASE_RECORD, Outcome, TrialResult, TrialStatus
from trainables.training.attempt_folder import clear_node, on_this_node, publish_rest
from trainables.training.reporter import StopTrial
from trainables.workers.credentials import use_credentials
from trainables.workers.granted_gpus import check_granted_gpus
from trainables.workers.method import trial_function
from trainables.workers.node import check_sees
from trainables.workers.packed_trials import SlotHosts, train_in_slot
from trainables.workers.reporters import OUTCOME, Report, Watched, report_to_tune
from trainables.workers.stop_request import is_ended_by_hand
from trainables.workers.trial_log import log_to
from trainables.workers.trial_outcome import LOST, root_cause, verdict
from trainables.workers.worker_group import train_on_workers

Train = Callable[[TrialConfig, Report], TrialResult]


def run_trial(config: dict[str, Any], slot_hosts: SlotHosts | None = None) -> None:
    """Tune's function trainable.

    `config["trial"]` is a `TrialConfig` as plain data; `config["suspect_at"]` the step that it has
    not got beyond in an attempt whose process was lost, if the last was such a one.
    """
    trial = TrialConfig.model_validate(config["trial"])
    here, in_slot = trial, None
    use_credentials()
    try:
        check_sees(trial.base_dir, BASE_RECORD)
        if slot_hosts is not None and slot_hosts.train(trial):
            in_slot = partial(train_in_slot, slot_hosts, suspect_at=config["suspect_at"])
        waits = trial.workers > 1 or in_slot is not None
        here = on_this_node(trial, only_waits=waits)
        with log_to(Path(here.output_dir) / "trial.log"):
            outcome = _outcome(trial, here, in_slot)
        publish_rest(here)
    except (OSError, UserError) as error:  # no place even for the log, or it is not shared
        outcome = verdict(here, error)
    except SystemExit:  # Tune has stopped the trial
        clear_node(here)
        raise
    # Asked before the report, as the driver takes the request back once it knows of the end.
    leaves = outcome.status is TrialStatus.RUNNING and not is_ended_by_hand(trial.number)
    ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})
    if leaves:  # Tune has it, and must give no other trial to a process whose node, or a worker's
        os._exit(0)  # node, is going away


def trial_process_seconds() -> float:
    """CPU seconds that this process took to start and to import what a trial needs."""
    return time.process_time()


def _outcome(trial: TrialConfig, here: TrialConfig, in_slot: Train | None) -> Outcome:
    """Run the trial with its folders here; whatever happens becomes a status and a reason.

    If the error has broken this process's GPU, the process ends and Tune restarts the trial.

    Raises:
        Exception: one of `LOST`, as the process that trained it has died, or one from `verdict`.
    """
    if is_ended_by_hand(trial.number):  # while it waited; from now on this process hears of it
        return Outcome(status=TrialStatus.RUNNING)
    try:
        result = _train(trial, here, in_slot)
    except LOST:
        raise
    except Exception as error:  # one trial's error must never end the sweep
        if isinstance(root_cause(error), StopTrial):
            return Outcome(status=TrialStatus.RUNNING)
        traceback.print_exc()
        end_with_lost_device(lambda: publish_rest(here))
        return verdict(here, error)
    finally:
        watchdog.stop()
    return Outcome(
        status=TrialStatus.COMPLETE,
        weights_dir=result.weights_dir,
        best_weights_dir=result.best_weights_dir,
    )


def _train(trial: TrialConfig, here: TrialConfig, in_slot: Train | None) -> TrialResult:
    """Run the trial; a group of workers that runs out of memory is restarted as a whole."""
    if in_slot is not None:
        return in_slot(trial, report_to_tune)
    with gc_paused():
        from trainables.process.out_of_memory import train_within_memory

    if trial.workers > 1:
        return train_within_memory(lambda smaller: train_on_workers(smaller, report_to_tune), trial)
    check_granted_gpus()
    train = trial_function(here)

    return train_within_memory(
        lambda smaller: train(smaller, Watched(smaller, report_to_tune)), here
    )
