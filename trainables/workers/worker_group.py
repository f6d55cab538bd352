"""A trial with several workers: a group of processes inside the trial's placement group.

The group belongs to the trial's process and outlives the trial, as Tune reuses the process for the
next trial with the same resources. All processes of a node map the base's weights from its page
cache.
"""

from __future__ import annotations

import traceback
from functools import lru_cache
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainables.config import TrialConfig
from trainables.errors import error_text
from trainables.process.lost_process import is_lost_worker
from trainables.records.schema import TrialResult
from trainables.workers.reporters import Report
from trainables.workers.stop_request import stops_with_this_node
from trainables.workers.trial_outcome import most_telling
from trainables.workers.worker import IN_STEP, environments, worker_actor

_LAST_WORDS_S = 3.0  # for other workers' errors once the first has failed
_LONGEST_WRITING_S = 600.0  # of a checkpoint, before the workers are killed
_LONGEST_ENDING_S = 60.0  # of all workers once Tune has stopped their trial


def train_on_workers(trial: TrialConfig, report: Report) -> TrialResult:
    """Train in every worker of this process's group, and pass on the reports of rank 0.

    If a worker failed by itself, the group is killed and replaced by a new one.

    Raises:
        RayActorError: a worker's process has died, or lost the others; says which one.
        Exception: else the most informative error of the workers.
    """
    try:
        group = _ready_group(trial)
    except RayTaskError as error:
        raise (_lost_process(error.cause, "a worker, as the group formed") or error) from None
    try:
        return group.train(trial, report)
    except RayError as error:
        failures = group.failures()
        if len(failures) < trial.workers or not all(
            isinstance(failure, IN_STEP) for failure in failures.values()
        ):
            _replace(group)
        # None has ended where a worker cannot be reached.
        cause = most_telling([*failures.values()] or [error])
        traceback.print_exception(cause)
        ranks = [rank for rank, failure in failures.items() if failure is cause]
        who = f"worker {ranks[0]} of {trial.workers}" if ranks else "a worker"
        raise (_lost_process(cause, who) or cause) from None


def _lost_process(cause: BaseException, who: str) -> RayActorError | None:
    """The error that has the trial go on in its next attempt, if a worker was lost; says which."""
    is_lost = is_lost_worker(cause) or isinstance(cause, (RayActorError, OutOfMemoryError))
    return RayActorError(error_msg=f"{who}: {error_text(cause)}") if is_lost else None


def _ready_group(trial: TrialConfig) -> _Group:
    """This process's group if all its workers are alive and idle, or else a new one."""
    size = trial.workers, trial.cpus_per_worker, trial.gpus_per_worker
    group = _group(*size)
    if not group.is_ready():
        _replace(group)
    return _group(*size)


def _replace(group: _Group) -> None:
    group.kill()
    _group.cache_clear()


@lru_cache(maxsize=1)
def _group(workers: int, cpus: float, gpus: float) -> _Group:
    """This process's group; it has one placement group, hence at most one group of workers."""
    return _Group(workers, cpus, gpus)


class _Group:
    """Workers in the bundles of this process's placement group, except its own, the first."""

    def __init__(self, workers: int, cpus: float, gpus: float) -> None:
        actor, placement = worker_actor(cpus, gpus), ray.util.get_current_placement_group()
        started = [
            actor.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement, placement_group_bundle_index=index + 1
                )
            ).remote()
            for index in range(workers)
        ]
        homes = ray.get([worker.home.remote() for worker in started])
        order = sorted(range(workers), key=homes.__getitem__)
        self._workers: list[Any] = [started[index] for index in order]
        self._connect(environments([homes[index] for index in order]))
        self._training: list[Any] = []
        # One request is always pending; if no report of a trial answers it, the next trial's will.
        self._report = self._workers[0].next_report.remote()

    def _connect(self, members: list[dict[str, str]]) -> None:
        port = ray.get(self._workers[0].serve.remote(members[0]["MASTER_ADDR"]))
        common = {"MASTER_PORT": str(port), **stops_with_this_node()}
        joining = [
            worker.join.remote(member | common)
            for worker, member in zip(self._workers, members, strict=True)
        ]
        ray.get(joining)

    def train(self, trial: TrialConfig, report: Report) -> TrialResult:
        """Train to the end; returns what rank 0 does.

        Raises:
            RayError: a worker has failed.
        """
        self._training = [worker.train.remote(trial) for worker in self._workers]
        training = list(self._training)
        while training:
            (done,), _ = ray.wait([self._report, *training])
            event = ray.get(done)
            if done is self._report:
                self._pass_on(event, report)
            else:
                training.remove(done)
        result: TrialResult = ray.get(self._training[0])
        return result

    def _pass_on(self, measurement: Any, report: Report) -> None:
        """Pass on a report; if Tune stops the trial, ending this thread, the workers end theirs."""
        goes_on = False
        try:
            report(measurement)
            goes_on = True
        finally:
            self._workers[0].answer.remote(goes_on)
            self._report = self._workers[0].next_report.remote()

    def failures(self) -> dict[int, BaseException]:
        """The workers' errors by rank."""
        ended, _ = ray.wait(self._training, num_returns=len(self._training), timeout=_LAST_WORDS_S)
        failures = {
            r: _failure(training) for r, training in enumerate(self._training) if training in ended
        }
        self._training = []
        return {rank: failure for rank, failure in failures.items() if failure is not None}

    def is_ready(self) -> bool:
        """Whether all workers are alive and have finished with the previous trial."""
        homes = [worker.home.remote() for worker in self._workers]
        try:
            ray.get([*self._training, *homes], timeout=_LONGEST_ENDING_S)
        except RayError:
            return False
        return True

    def kill(self) -> None:
        """End the processes, whatever they are doing but writing a checkpoint."""
        written = [worker.finish_writing.remote() for worker in self._workers]
        ray.wait(written, num_returns=len(written), timeout=_LONGEST_WRITING_S)
        for worker in self._workers:
            ray.kill(worker)


def _failure(training: Any) -> BaseException | None:
    """The error that a worker raised, or Ray's error about its process."""
    try:
        ray.get(training)
    except RayError as error:
        cause: BaseException | None = getattr(error, "cause", None)
        return cause or error
    return None
