"""What a training measures along the way: losses, evaluations, forgetting, costs."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from trl import SFTTrainer

from trainables import metric_keys
from trainables.config import TrialConfig
from trainables.data.dataset import TokenizedData
from trainables.errors import (
    Diverged,
    EvaluationFailed,
    EvaluationOutOfMemory,
    TrialError,
    error_with_notes,
)
from trainables.evaluation.base_scores import Base, compare_with_base
from trainables.evaluation.drift import token_nll
from trainables.evaluation.evaluator import shared_evaluator
from trainables.process.collectives import is_first_worker
from trainables.process.lost_process import is_lost_worker
from trainables.process.out_of_memory import is_out_of_memory
from trainables.records.item_records import items_file, without_texts, write_items
from trainables.records.schema import Measurement, evaluation_name
from trainables.storage.disk import is_disk_full
from trainables.training.reporter import Reporter


class Measuring:
    """Turns the trainer's log into measurements; evaluates at the report steps."""

    def __init__(
        self,
        config: TrialConfig,
        reporter: Reporter,
        tokenized: TokenizedData,
        total_steps: int,
        has_own_process: bool = True,
    ) -> None:
        self._config = config
        self._reporter = reporter
        self._validation = tokenized.validation
        self._base = _base_in(config.base_dir)
        self.evaluator = shared_evaluator(config.model, config.eval)
        self.evaluator.check_rows(self._base.record.rows)
        self._report_steps = config.train.report_steps(total_steps)
        self._log_steps = config.train.log_steps(total_steps)
        self._losses: list[float] = []
        self._total_steps = total_steps
        self._has_own_process = has_own_process
        self._samples = len(tokenized.train)
        self._evaluation_seconds = 0.0
        self._earlier_seconds = 0.0
        self._earlier_peak = 0
        self._gathered: dict[str, float] = {}
        self.last: Measurement | None = None

    def start(self, trainer: SFTTrainer) -> None:
        """Set the trainer and start the clock."""
        self._started = time.perf_counter()
        self._trainer = trainer
        self._trainable = sum(  # under ZeRO-3 a shard knows its whole size as `ds_numel`
            self._config.method.trained_numbers(
                name, getattr(parameter, "ds_numel", parameter.numel())
            )
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad
        )
        if torch.cuda.is_available() and self._has_own_process:
            torch.cuda.reset_peak_memory_stats()

    def carry(self) -> dict[str, Any]:
        """The state of the measurements, for a checkpoint."""
        return {
            "losses": self._losses,
            "gathered": self._gathered,
            "evaluation_seconds": self._evaluation_seconds,
            "seconds": self._elapsed(),
            "peak_bytes": self._peak_bytes(),
        }

    def restore(self, carried: dict[str, Any]) -> None:
        """Continue from what `carry` gave in an earlier attempt."""
        self._losses = list(carried["losses"])
        self._gathered = dict(carried["gathered"])
        self._evaluation_seconds = carried["evaluation_seconds"]
        self._earlier_seconds = carried["seconds"]
        self._earlier_peak = carried["peak_bytes"]

    def charge_evaluation(self, seconds: float) -> None:
        """Count this time as evaluation."""
        self._evaluation_seconds += seconds

    def exclude(self, seconds: float) -> None:
        """Leave out time spent on other trials on the same device."""
        self._started += seconds

    def before_step(self) -> None:
        """Keep the step's learning rate: DeepSpeed's own optimizers advance it within the step."""
        (self._learning_rate, *_) = self._trainer.lr_scheduler.get_last_lr()

    def after_step(self, logs: dict[str, float]) -> None:
        """Check for divergence; report a log step.

        Raises:
            Diverged: the loss or the gradient norm is NaN or infinite.
        """
        step, loss = self._trainer.state.global_step, float(logs["loss"])
        # DeepSpeed gives no norm at stage 0 in float32.
        norm = {metric_keys.GRAD_NORM: float(logs["grad_norm"])} if "grad_norm" in logs else {}
        if not all(map(math.isfinite, (loss, *norm.values()))):
            raise Diverged(f"step {step}: loss {loss}, gradient norm {logs.get('grad_norm')}")
        self._losses.append(loss)
        if step not in self._report_steps | self._log_steps:
            return
        self._gathered = norm | self._training_metrics()
        if step not in self._report_steps:
            self._report(self._gathered)

    def evaluate(self, before_report: Callable[[], None] = lambda: None) -> Measurement:
        """Evaluate at a report step, call `before_report`, and report with the step's losses.

        Raises:
            EvaluationFailed: the evaluation raised an error.
            EvaluationOutOfMemory: it ran out of memory.
        """
        metrics = self._evaluate(self._trainer.model)
        before_report()
        return self._report(self._gathered | metrics)

    def evaluate_at(self, strength: float, model: Any = None) -> None:
        """Evaluate the trained model at another strength, and report that point.

        Args:
            strength: of the update in the model.
            model: if it is not the trainer's.

        Raises:
            EvaluationFailed: the evaluation raised an error.
            EvaluationOutOfMemory: it ran out of memory.
        """
        metrics = self._evaluate(self._trainer.model if model is None else model, strength)
        self._reporter.report(self._measurement(self._gathered | metrics, strength))

    def _report(self, metrics: dict[str, float]) -> Measurement:
        self.last = self._measurement(metrics)
        self._reporter.report(self.last)
        return self.last

    def _measurement(self, metrics: dict[str, float], strength: float = 1.0) -> Measurement:
        return Measurement(
            step=self._trainer.state.global_step,
            total_steps=self._total_steps,
            strength=strength,
            metrics=metrics | self._costs(),
            time=time.time(),
        )

    def _training_metrics(self) -> dict[str, float]:
        state = self._trainer.state
        loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        return {
            metric_keys.TRAIN_LOSS: loss,
            metric_keys.LEARNING_RATE: float(self._learning_rate),
            metric_keys.GLOBAL_STEP: float(state.global_step),
            metric_keys.EPOCH: state.global_step * self._config.train.batch_size / self._samples,
            metric_keys.TOKENS_SEEN: float(state.num_input_tokens_seen),
        }

    def _evaluate(self, model: Any, strength: float = 1.0) -> dict[str, float]:
        step = self._trainer.state.global_step
        try:
            return self._metrics(model, evaluation_name(step, strength))
        except Exception as error:
            if is_disk_full(error) or is_lost_worker(error):
                raise
            raise _evaluation_error(step, error) from error

    def _metrics(self, model: Any, name: str) -> dict[str, float]:
        """Evaluate; the workers of a group share the work, and all get the results."""
        started = time.perf_counter()
        evaluation, metrics = compare_with_base(self._base, model, self.evaluator)
        if self._validation:
            loss = token_nll(model, self._validation, self._config.eval.batch_size)
            metrics[metric_keys.VALIDATION_LOSS] = loss
        if is_first_worker():
            items = without_texts(evaluation.items)
            write_items(items_file(Path(self._config.output_dir), name), items)
        self.charge_evaluation(time.perf_counter() - started)
        return metrics

    def is_report_step(self, step: int) -> bool:
        """Whether the model is evaluated after this step."""
        return step in self._report_steps

    def _elapsed(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._started

    def _peak_bytes(self) -> int:
        """The peak over all attempts; 0 in a slot, whose process trains other trials as well."""
        return max(self._earlier_peak, peak_bytes()) if self._has_own_process else 0

    def _costs(self) -> dict[str, float]:
        elapsed = self._elapsed()
        training = elapsed - self._evaluation_seconds
        gpus = self._config.workers * self._config.gpus_per_worker
        devices = gpus or self._config.workers
        tokens = self._trainer.state.num_input_tokens_seen
        memory = {metric_keys.MAX_RESERVED: peak / 2**30} if (peak := self._peak_bytes()) else {}
        return memory | {
            metric_keys.TRAIN_SECONDS: training,
            metric_keys.EVAL_SECONDS: self._evaluation_seconds,
            metric_keys.TOKENS_PER_SECOND: tokens / training / devices,
            metric_keys.MICRO_BATCH_SIZE: float(self._config.train.micro_batch_size),
            metric_keys.EVAL_BATCH_SIZE: float(self._config.eval.batch_size),
            metric_keys.GPU_HOURS: elapsed / 3600 * gpus,
            metric_keys.TRAINABLE_PARAMETERS: float(self._trainable),
        }


@lru_cache(maxsize=1)  # slots of one process share it
def _base_in(folder: str) -> Base:
    return Base.load(Path(folder))


def _evaluation_error(step: int, error: Exception) -> TrialError:
    message = f"step {step}{error_with_notes(error)}"
    if is_out_of_memory(error):
        return EvaluationOutOfMemory(message)
    return EvaluationFailed(f"evaluation failed at {message}")


def peak_bytes() -> int:
    """Peak memory of this process in bytes: on its GPU, or else on the host since it started."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
