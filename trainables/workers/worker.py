"""One process of a group of workers; it is kept for the trials that follow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import ray

from trainables.config import TrialConfig
from trainables.errors import Diverged
from trainables.gc_pause import gc_paused
from trainables.process import watchdog
from trainables.process.background import in_background
from trainables.process.lost_process import end_with_lost_device
from trainables.records.schema import BASE_RECORD, Measurement, TrialResult
from trainables.training.attempt_folder import clear_node, on_this_node, publish_worker, worker_log
from trainables.training.reporter import StopTrial
from trainables.workers.credentials import use_credentials
from trainables.workers.granted_gpus import check_granted_gpus
from trainables.workers.method import trial_function
from trainables.workers.node import check_sees
from trainables.workers.reporters import Watched
from trainables.workers.trial_log import log_to

# All wait for the slowest to load or to generate, and for rank 0 while it waits for Tune.
_LONGEST_WAIT = timedelta(days=1)
_REPORTS = "reports"
_ENDING = "ending"
# These end all workers at the same step.
IN_STEP = (StopTrial, Diverged)


class Home(NamedTuple):
    """Where a worker runs: its node's address, and the GPU that Ray gave it, if any."""

    address: str
    gpu: str


class StoppedByTune(BaseException):
    """Tune has stopped the trial at a report; not an error, so no handler must catch it."""


class Worker:
    """A member of a group, as an actor; `train` is called on all members at once."""

    def __init__(self) -> None:
        self._reports: SimpleQueue[Measurement] = SimpleQueue()
        self._answers: SimpleQueue[bool] = SimpleQueue()

    def home(self) -> Home:
        """Where this worker runs."""
        gpu, _, _ = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")
        return Home(ray.util.get_node_ip_address(), gpu)

    def serve(self, address: str) -> int:
        """Open the group's rendezvous store and return its port; rank 0 only."""
        with gc_paused():
            from torch.distributed import TCPStore

        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return int(self._store.port)

    def join(self, environment: dict[str, str]) -> None:
        """Join the group for the life of the process; `environment` as from `environments`."""
        os.environ |= environment  # before CUDA enumerates its devices
        with gc_paused():
            import torch

        if torch.cuda.is_available():  # each sees all the group's GPUs on the node
            torch.cuda.set_device(int(environment["LOCAL_RANK"]))
        rank, workers = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        if rank > 0:
            address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
            self._store = torch.distributed.TCPStore(address, port)
        self._store.set_timeout(_LONGEST_WAIT)  # NCCL connects only when there is work for it
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=self._store,
            rank=rank,
            world_size=workers,
            timeout=_LONGEST_WAIT,
        )

    def train(self, trial: TrialConfig) -> TrialResult | None:
        """Run this worker's part of a trial; if an error has broken its GPU, the process ends.

        Returns:
            The trial's result, of which rank 0 alone knows the best weights; None if Tune has
            stopped the trial.
        """
        from trainables.process.out_of_memory import free_memory

        free_memory()  # of the previous trial
        use_credentials()
        check_sees(trial.base_dir, BASE_RECORD)
        rank, trial = int(os.environ["RANK"]), on_this_node(trial)
        result: TrialResult | None = None
        try:
            with log_to(worker_log(trial, rank)):
                result = self._train(trial, rank)
        except StoppedByTune:
            pass
        except IN_STEP:
            _leave(trial, rank)
            raise
        _leave(trial, rank, is_stopped=result is None)
        return result

    def _train(self, trial: TrialConfig, rank: int) -> TrialResult:
        try:
            check_granted_gpus()
            return trial_function(trial)(trial, Watched(trial, self._report))
        except IN_STEP:
            raise
        except Exception:  # the next attempt goes on from what is published
            publish = partial(publish_worker, trial, rank)
            end_with_lost_device(publish)
            with in_background(publish):  # else the group would not wait for it
                raise
        finally:
            watchdog.stop()

    @ray.method(concurrency_group=_REPORTS)
    def next_report(self) -> Measurement:
        """Wait for the next measurement, of this trial or a later one; `answer` must follow."""
        return self._reports.get()

    @ray.method(concurrency_group=_REPORTS)
    def answer(self, goes_on: bool) -> None:
        """Say whether the trial goes on after the last measurement."""
        self._answers.put(goes_on)

    @ray.method(concurrency_group=_ENDING)
    def finish_writing(self) -> None:
        """Wait until the checkpoint that this worker may be writing is written."""
        from trainables.process.background import finish

        finish()

    def _report(self, measurement: Measurement) -> None:
        """Pass on a measurement of rank 0, and wait with the group for Tune's answer.

        Raises:
            StoppedByTune: the trial ends here, in every worker.
        """
        from trainables.process.collectives import agreed, is_first_worker

        goes_on = False
        if is_first_worker():
            self._reports.put(measurement)
            goes_on = self._answers.get()
        if not agreed(goes_on):
            raise StoppedByTune


def _leave(trial: TrialConfig, rank: int, is_stopped: bool = False) -> None:
    """Publish this worker's files, then, once all workers have, clear the node."""
    from trainables.process.collectives import barrier

    publish_worker(trial, rank, is_stopped)
    if trial.published_dir is not None:
        barrier()
        clear_node(trial)


def environments(homes: Sequence[Home]) -> list[dict[str, str]]:
    """The variables that a torch launcher would set for a group's workers, in order of rank.

    The workers of a node see each other's GPUs, which NCCL needs for its fastest transports, and
    each uses the one at the index of its local rank. Homes are by rank, those of a node adjacent.
    """
    result = []
    for rank, home in enumerate(homes):
        node = [index for index, other in enumerate(homes) if other.address == home.address]
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(homes)),
            "LOCAL_RANK": str(rank - node[0]),
            "LOCAL_WORLD_SIZE": str(len(node)),
            "MASTER_ADDR": homes[0].address,
        }
        if home.gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(homes[index].gpu for index in node)
        result.append(environment)
    return result


def worker_actor(cpus: float, gpus: float) -> Any:
    """The actor class; it passes on reports during training and runs one training at a time."""
    return ray.remote(num_cpus=cpus, num_gpus=gpus, concurrency_groups={_REPORTS: 1, _ENDING: 1})(
        Worker
    )
