"""The Tune-facing side of a trial; the only file of this package that imports Ray.

What Tune receives is `{"measurement": ...}` at each report and `{"outcome": ...}` at the end; an
outcome that is still RUNNING is that of a trial which was asked to stop and will go on later.
The heavy libraries are imported where a worker needs them, so that the driver never loads them.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
import ray.tune

from trainables.attempt_folder import (
    on_this_node,
    publish_items,
    publish_rest,
    publish_worker,
    published_address,
)
from trainables.checkpoint_files import find_best
from trainables.config import DataConfig, EvalSuite, ModelConfig, TrialConfig
from trainables.disk import disk_full, is_disk_full, log_stream
from trainables.errors import Diverged, OutOfMemory, TrialError, UserError, first_line
from trainables.locations import node_cache
from trainables.records import Measurement, Outcome, TrialResult, TrialStatus
from trainables.reporter import Reporter, StopTrial
from trainables.slots import host
from trainables.slots.eligibility import reason_against
from trainables.storage import open_storage, parse_location

MEASUREMENT = "measurement"
OUTCOME = "outcome"
TrialFunction = Callable[[TrialConfig, Reporter], TrialResult]
_STOP = "stop request"  # a name among those of this driver alone


@dataclass(frozen=True)
class SlotHosts:
    """Where LoRA trials train together.

    Attributes:
        actors: handles of `SlotHost` actors.
        slots: of each.
    """

    actors: tuple[Any, ...]
    slots: int


def start_slot_host(cpus: float, gpus: float) -> Any:
    """A `SlotHost` as an actor, which Ray starts anew should its process die."""
    actor = ray.remote(host.SlotHost)
    return actor.options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_concurrency=1000
    ).remote(_stop_is_requested)


def run_trial(config: dict[str, Any], slot_hosts: SlotHosts | None = None) -> None:
    """Tune's function trainable. `config["trial"]` is a `TrialConfig` as plain data."""
    trial = TrialConfig.model_validate(config["trial"])
    here = trial
    try:
        here = on_this_node(trial)
        with _log_to(Path(here.output_dir) / "trial.log"):
            outcome = _outcome(trial, here, slot_hosts)
        publish_rest(here)
    except OSError as error:  # there is no place even for the log
        outcome = _verdict(here, error)
    ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})


class StopRequest:
    """The driver's way to ask all its trials to save a checkpoint and end."""

    def __init__(self) -> None:
        actor: Any = _StopRequest
        self._actor = actor.options(name=_STOP).remote()

    def make(self) -> None:
        """Ask; trials end at their next step."""
        ray.get(self._actor.make.remote())

    def close(self) -> None:
        """Let the next sweep of this driver have the name."""
        ray.kill(self._actor)


@ray.remote(num_cpus=0)
class _StopRequest:
    def __init__(self) -> None:
        self._made = asyncio.Event()

    async def make(self) -> None:
        self._made.set()

    async def wait(self) -> None:
        await self._made.wait()


@lru_cache
def _stop_requested(job: str) -> Event:
    """Set once this process's trials shall stop; one thread waits for all of them."""
    requested = Event()

    def wait() -> None:
        with suppress(ValueError, ray.exceptions.RayError):  # none is made, or it is gone
            ray.get(ray.get_actor(_STOP).wait.remote())
            requested.set()

    Thread(target=wait, name="stop request", daemon=True).start()
    return requested


@ray.remote(max_retries=0)
def evaluate_base_remotely(
    model: ModelConfig, data: DataConfig, suite: EvalSuite, seed: int, cache: str, target: str
) -> UserError | None:
    """`evaluate_base` on a worker, copied to `target`; what is wrong with the input is returned.

    Without a `cache` of all sweeps the node's own is used.
    """
    from trainables.base_evaluation import evaluate_base

    cache_dir = Path(cache) if cache else node_cache() / "bases"
    try:
        with _log_to(cache_dir / "base.log"):
            folder = evaluate_base(model, data, suite, seed, cache_dir)
            open_storage(parse_location(target)).publish(folder, "", last="base.json")
            return None
    except UserError as error:
        return error


@ray.remote(max_retries=1)
def inspect_remotely(sweep_dir: str, number: int) -> str | None:
    """`inspect_trial` on a worker; returns why something could not be looked at, if so."""
    from trainables.inside.inspection import inspect_trial
    from trainables.inside.records import InsideFolder

    with _log_to(InsideFolder(Path(sweep_dir)).log(number)):
        try:
            return inspect_trial(Path(sweep_dir), number).reason
        except Exception as error:  # the sweep is done, and stays so
            traceback.print_exc()
            return f"{type(error).__name__}: {first_line(error)}"


def _outcome(trial: TrialConfig, here: TrialConfig, slot_hosts: SlotHosts | None) -> Outcome:
    """Run the trial with its folders here; whatever happens becomes a status and a reason.

    Raises:
        ray.exceptions.RayActorError: the process that trained it has died; Tune starts it again.
    """
    try:
        _train(trial, here, slot_hosts)
    except ray.exceptions.RayActorError:
        raise
    except Exception as error:  # a trial's fault never ends the sweep
        if isinstance(_root_cause(error), StopTrial):
            return Outcome(status=TrialStatus.RUNNING)
        traceback.print_exc()
        return _verdict(here, error)
    finally:
        faulthandler.cancel_dump_traceback_later()
    best = find_best(here.attempt_dirs)
    return Outcome(
        status=TrialStatus.COMPLETE,
        weights_dir=trial.weights_dir if trial.train.save_weights else None,
        best_weights_dir=published_address(here, best[0]) if best else None,
    )


def _verdict(trial: TrialConfig, error: BaseException) -> Outcome:
    """What an error means for the trial that it ended."""
    if is_disk_full(error):
        reason = disk_full(Path(trial.output_dir))
        return Outcome(status=TrialStatus.FAILED, reason=reason)
    cause = _root_cause(error)
    if isinstance(cause, Diverged):
        return Outcome(status=TrialStatus.DIVERGED, reason=str(cause))
    if isinstance(cause, OutOfMemory):
        return Outcome(status=TrialStatus.OUT_OF_MEMORY, reason=str(cause))
    if isinstance(cause, TrialError):
        return Outcome(status=TrialStatus.FAILED, reason=str(cause))
    return Outcome(status=TrialStatus.FAILED, reason=f"{type(cause).__name__}: {first_line(cause)}")


def _train(trial: TrialConfig, here: TrialConfig, slot_hosts: SlotHosts | None) -> None:
    """Run the trial; a group of workers that is out of memory is started anew as a whole."""
    if slot_hosts and not reason_against(trial):
        _train_in_slot(slot_hosts, trial, _TuneReporter())
        return
    from trainables.out_of_memory import train_within_memory

    if trial.workers > 1:
        train_within_memory(lambda smaller: _train_on_workers(smaller, here), trial)
        return
    reporter, train = _Watched(here, _TuneReporter()), _trial_function(here)
    train_within_memory(lambda smaller: train(smaller, reporter), here)


def _trial_function(trial: TrialConfig) -> TrialFunction:
    if trial.method == "lora":
        from trainables.lora import train_lora

        return train_lora
    from trainables.full_sft import train_full_sft

    return train_full_sft


def _train_in_slot(slot_hosts: SlotHosts, trial: TrialConfig, reporter: Reporter) -> TrialResult:
    """Let a host train the trial beside others, and pass on what it reports."""
    loads = ray.get([actor.load.remote() for actor in slot_hosts.actors])
    actor = slot_hosts.actors[loads.index(min(loads))]
    logging.getLogger(__name__).warning(
        f"trains in a slot, beside up to {slot_hosts.slots - 1} other trials"
    )
    ray.get(actor.join.remote(trial.model_dump(mode="json"), slot_hosts.slots))
    timeout = None  # waiting for a slot is not hanging
    try:
        while True:
            event = _next_event(actor, trial, timeout)
            if host.MEASUREMENT in event:
                reporter.report(Measurement.model_validate(event[host.MEASUREMENT]))
            elif host.RESULT in event:
                return TrialResult.model_validate(event[host.RESULT])
            elif host.ERROR in event:
                raise event[host.ERROR]
            elif host.UNKNOWN in event:
                raise ray.exceptions.RayActorError
            timeout = trial.minutes_per_report and trial.minutes_per_report * 60
    finally:  # stopped, too: Tune ends the thread in its report
        actor.leave.remote(trial.trial_id)


def _next_event(actor: Any, trial: TrialConfig, timeout: float | None) -> host.Event:
    """The next event; a host that has none for too long is taken for hung, and ended."""
    reference = actor.next_event.remote(trial.trial_id)
    try:
        return dict(ray.get(reference, timeout=timeout))
    except ray.exceptions.GetTimeoutError:
        ray.kill(actor, no_restart=False)
        return dict(ray.get(reference))  # raises what is raised where a host has died


def _train_on_workers(trial: TrialConfig, here: TrialConfig) -> None:
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
        raise _root_cause(error) from None


def _work(loop_config: dict[str, Any]) -> None:
    """One worker of a group. Reports are a barrier for the group; rank 0's are forwarded."""
    import ray.train

    trial = on_this_node(TrialConfig.model_validate(loop_config["trial"]))
    rank = ray.train.get_context().get_world_rank()
    with _log_to(Path(trial.output_dir) / f"worker_{rank}.log"):
        _trial_function(trial)(trial, _Watched(trial, _WorkerReporter()))
    publish_worker(trial, rank)


class _Watched:
    """Ends the process where a trial reports nothing for too long; it is started again then.

    The watch is the interpreter's own and needs no cooperation of a hung trial. Where it hung is
    written to the trial's log.
    """

    def __init__(self, trial: TrialConfig, reporter: Reporter) -> None:
        self._trial = trial
        self._reporter = reporter
        minutes = trial.minutes_per_report
        self._seconds = minutes * 60 if minutes else None
        self._wind()

    def report(self, measurement: Measurement) -> None:
        self._stop()  # Tune answers when it has taken the report, which may be long
        publish_items(self._trial)
        self._reporter.report(measurement)
        if measurement.step != measurement.total_steps:
            self._wind()

    def stop_requested(self) -> bool:
        return self._reporter.stop_requested()

    def _wind(self) -> None:
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.stderr)

    def _stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()


def _stop_is_requested() -> bool:
    return _stop_requested(ray.get_runtime_context().get_job_id()).is_set()


class _StoppableReporter:
    def stop_requested(self) -> bool:
        return _stop_is_requested()


class _TuneReporter(_StoppableReporter):
    def report(self, measurement: Measurement) -> None:
        ray.tune.report({MEASUREMENT: measurement.model_dump()})


class _WorkerReporter(_StoppableReporter):
    def report(self, measurement: Measurement) -> None:
        import ray.train

        ray.train.report({MEASUREMENT: measurement.model_dump()})


@contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """Send what the libraries print and log to a file of the trial's own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with log_stream(file) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            with redirect_stdout(stream), redirect_stderr(stream):
                yield
        finally:
            root.removeHandler(handler)
            sys.stdout.flush()


def _root_cause(error: BaseException) -> BaseException:
    """Through Ray's wrappers to the error that a worker raised.

    Of a group's several errors the one that says most: a worker that runs out of memory takes the
    others with it, which then miss their neighbour.
    """
    if isinstance(error, TrialError):
        return error
    if inner := getattr(error, "worker_failures", None):
        return min(map(_root_cause, inner.values()), key=_is_of_the_process)
    cause = getattr(error, "cause", None) or error.__cause__
    return _root_cause(cause) if isinstance(cause, BaseException) else error


def _is_of_the_process(error: BaseException) -> bool:
    """Whether the error tells of the process or its neighbours rather than of the trial."""
    from trainables.out_of_memory import is_out_of_memory

    return not (isinstance(error, TrialError) or is_out_of_memory(error) or is_disk_full(error))
