"""The Tune-facing side of a trial; the only file of this package that imports Ray.

What Tune receives is `{"measurement": ...}` at each report and `{"outcome": ...}` at the end.
The heavy libraries are imported where a worker needs them, so that the driver never loads them.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import ray.tune

from trainables.config import DataConfig, EvalSuite, ModelConfig, TrialConfig
from trainables.errors import Diverged, UserError
from trainables.records import Measurement, Outcome, TrialResult, TrialStatus
from trainables.reporter import Reporter

MEASUREMENT = "measurement"
OUTCOME = "outcome"
TrialFunction = Callable[[TrialConfig, Reporter], TrialResult]


def run_trial(config: dict[str, Any]) -> None:
    """Tune's function trainable. `config["trial"]` is a `TrialConfig` as plain data."""
    trial = TrialConfig.model_validate(config["trial"])
    with _log_to(Path(trial.output_dir) / "trial.log"):
        outcome = _outcome(trial)
    ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})


@ray.remote(max_retries=0)
def evaluate_base_remotely(
    model: ModelConfig, data: DataConfig, suite: EvalSuite, seed: int, cache: str
) -> str | UserError:
    """`evaluate_base` on a worker; what is wrong with the input comes back as a value."""
    from trainables.base_evaluation import evaluate_base

    try:
        with _log_to(Path(cache) / "base.log"):
            return str(evaluate_base(model, data, suite, seed, Path(cache)))
    except UserError as error:
        return error


def _outcome(trial: TrialConfig) -> Outcome:
    """Run the trial; whatever happens to it becomes a status and a reason."""
    try:
        _train(trial)
    except Exception as error:  # a trial's fault never ends the sweep
        traceback.print_exc()
        return _verdict(_root_cause(error))
    finally:
        faulthandler.cancel_dump_traceback_later()
    weights_dir = trial.weights_dir if trial.train.save_weights else None
    return Outcome(status=TrialStatus.COMPLETE, weights_dir=weights_dir)


def _verdict(cause: BaseException) -> Outcome:
    import torch

    if isinstance(cause, Diverged):
        return Outcome(status=TrialStatus.DIVERGED, reason=str(cause))
    reason = f"{type(cause).__name__}: {_first_line(cause)}"
    if isinstance(cause, torch.OutOfMemoryError):
        return Outcome(status=TrialStatus.OUT_OF_MEMORY, reason=reason)
    return Outcome(status=TrialStatus.FAILED, reason=reason)


def _train(trial: TrialConfig) -> None:
    if trial.workers > 1:
        _train_on_workers(trial)
    else:
        _trial_function(trial)(trial, _Watched(trial, _TuneReporter()))


def _trial_function(trial: TrialConfig) -> TrialFunction:
    if trial.method == "lora":
        from trainables.lora import train_lora

        return train_lora
    from trainables.full_sft import train_full_sft

    return train_full_sft


def _train_on_workers(trial: TrialConfig) -> None:
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
            storage_path=str(Path(trial.output_dir).absolute()),
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def _work(loop_config: dict[str, Any]) -> None:
    """One worker of a group. Reports are a barrier for the group; rank 0's are forwarded."""
    import ray.train

    trial = TrialConfig.model_validate(loop_config["trial"])
    rank = ray.train.get_context().get_world_rank()
    with _log_to(Path(trial.output_dir) / f"worker_{rank}.log"):
        _trial_function(trial)(trial, _Watched(trial, _WorkerReporter()))


class _Watched:
    """Ends the process where a trial reports nothing for too long; it is started again then.

    The watch is the interpreter's own and needs no cooperation of a hung trial. Where it hung is
    written to the trial's log.
    """

    def __init__(self, trial: TrialConfig, reporter: Reporter) -> None:
        self._reporter = reporter
        minutes = trial.minutes_per_report
        self._seconds = minutes * 60 if minutes else None
        self._wind()

    def report(self, measurement: Measurement) -> None:
        self._stop()  # Tune answers when it has taken the report, which may be long
        self._reporter.report(measurement)
        if measurement.step != measurement.total_steps:
            self._wind()

    def _wind(self) -> None:
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.stderr)

    def _stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()


class _TuneReporter:
    def report(self, measurement: Measurement) -> None:
        ray.tune.report({MEASUREMENT: measurement.model_dump()})


class _WorkerReporter:
    def report(self, measurement: Measurement) -> None:
        import ray.train

        ray.train.report({MEASUREMENT: measurement.model_dump()})


@contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """Send what the libraries print and log to a file of the trial's own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", buffering=1) as stream:
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
    """Through Ray's wrappers to the error that a worker raised."""
    inner = getattr(error, "worker_failures", None) or {}
    if inner:
        return _root_cause(next(iter(inner.values())))
    cause = getattr(error, "cause", None) or error.__cause__
    return _root_cause(cause) if isinstance(cause, BaseException) else error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
