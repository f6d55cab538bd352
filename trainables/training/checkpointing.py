"""When a training's state is saved, and how a training resumes from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from trl import SFTTrainer

from trainables.compat.transformers import continue_logging_at
from trainables.config import TrialConfig
from trainables.process.background import in_background
from trainables.process.collectives import agreed, barrier, from_each, is_first_worker
from trainables.training import checkpoint, checkpoint_files, optimizer_state, random_state
from trainables.training.attempt_folder import is_scratch, publish_checkpoints, publish_file
from trainables.training.best_weights import BestWeights
from trainables.training.measuring import Measuring
from trainables.training.reporter import Reporter, StopTrial
from trainables.training.resume_point import resume_point


class AlreadyTrained(Exception):
    """The checkpoint is from the last step: nothing is left to train."""


class Checkpoints:
    """Saves the training's state at each evaluation, and restores it on resume.

    It is written while the evaluation runs, and before the evaluation is reported, so a checkpoint
    has everything that was reported. If the evaluation fails, the run that resumes from the
    checkpoint does it first. The newest two are kept, in case one is damaged.
    """

    def __init__(self, config: TrialConfig, reporter: Reporter, measuring: Measuring) -> None:
        self._config = config
        self._reporter = reporter
        self._attempts = config.attempt_dirs
        self._measuring = measuring
        self._resumed = resume_point(self._attempts)
        self._progress: checkpoint.Progress | None = None
        if self._resumed:
            with checkpoint_files.unchanged(self._resumed):
                self._progress = checkpoint.load_progress(self._resumed)
        self._evaluation_is_due = False
        self._random: dict[str, torch.Tensor] | None = None

    @property
    def first_step(self) -> int:
        """Optimizer steps already done."""
        return self._progress.step if self._progress else 0

    def start(self, trainer: SFTTrainer, best: BestWeights) -> None:
        """Set the trainer and the best weights, before the training."""
        self._trainer = trainer
        self._best = best

    def restore(self) -> None:
        """Restore parameters, moments and schedule, and remember the random state.

        All of the checkpoint is read here: an earlier attempt that lives on behind a cut network
        may delete it later.

        Raises:
            CheckpointLost: it has done so already.
        """
        if self._resumed is None or self._progress is None:
            # In bfloat16 DeepSpeed's stage 0 has made one step, to allocate its moments.
            optimizer_state.set_steps(self._trainer.optimizer, 0)
        else:
            with checkpoint_files.unchanged(self._resumed):
                self._read(self._resumed, self._progress)
        barrier()  # if a worker cannot read it, the next attempt may need a newer one
        if is_first_worker():
            checkpoint_files.set_damaged_aside(self._attempts, self._resumed)

    def _read(self, resumed: Path, progress: checkpoint.Progress) -> None:
        trainer, state = self._trainer, self._trainer.state
        method = self._config.method
        checkpoint.load_training_state(resumed, trainer.model, trainer.optimizer, method)
        _set_schedule(trainer, progress.scheduler)
        state.global_step = progress.step
        continue_logging_at(trainer, progress.step)
        state.num_input_tokens_seen = progress.tokens_seen
        evaluated = checkpoint_files.evaluated(resumed)
        carried = evaluated or progress.carried
        self._measuring.restore(carried)
        self._best.restore(carried["best"])
        is_report_step = self._measuring.is_report_step(progress.step)
        self._evaluation_is_due = is_report_step and evaluated is None
        self._random = checkpoint.load_random_state(resumed, trainer.args.process_index)

    def evaluate_missing(self) -> None:
        """Do the evaluation that the checkpoint's step still lacks.

        Raises:
            AlreadyTrained: it was the last step.
        """
        if self._resumed is None:
            return
        if agreed(self._evaluation_is_due):
            self._best.offer(self._measuring.evaluate())
        if self.first_step >= self._trainer.args.max_steps:
            raise AlreadyTrained

    def before_step(self) -> None:
        """Restore the random state, from which the data loader has drawn by now."""
        if self._random is not None:
            random_state.restore(self._random)
            self._random = None

    def after_step(self) -> None:
        """Save and evaluate at a report step; save and end if that is requested."""
        step = self._trainer.state.global_step
        is_report_step = self._measuring.is_report_step(step)
        if is_report_step:
            with in_background(partial(self._write, self._snapshot())) as wait_for_it:
                measurement = self._measuring.evaluate(before_report=wait_for_it)
            if step >= self._trainer.args.max_steps:  # the weights follow at once
                return
            self._best.offer(measurement)
            self._mark_evaluated(step)
        if any(from_each(self._reporter.stop_requested())):
            if not is_report_step:
                self._write(self._snapshot())
            barrier()
            raise StopTrial

    def _mark_evaluated(self, step: int) -> None:
        """Record that a run that resumes from this step needs no evaluation first."""
        if is_first_worker():
            folder = checkpoint_files.checkpoint_dir(self._attempts[-1], step)
            publish_file(self._config, checkpoint_files.mark_evaluated(folder, self._carry()))

    def _carry(self) -> dict[str, Any]:
        return self._measuring.carry() | {"best": self._best.carry()}

    def _snapshot(self) -> checkpoint.Snapshot:
        trainer, state = self._trainer, self._trainer.state
        progress = checkpoint.Progress(
            state.global_step, state.num_input_tokens_seen, _schedule(trainer), self._carry()
        )
        return checkpoint.take(trainer.model, trainer.optimizer, progress, self._config.method)

    def _write(self, snapshot: checkpoint.Snapshot) -> None:
        if not is_first_worker():
            return
        folder = checkpoint_files.checkpoint_dir(self._attempts[-1], snapshot.progress.step)
        checkpoint.write(folder, snapshot, is_scratch(self._config))
        checkpoint_files.keep_newest(self._attempts, 2)
        publish_checkpoints(self._config)


_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")


def _schedule(trainer: SFTTrainer) -> dict[str, Any]:
    scheduler = _base_scheduler(trainer)
    return {name: getattr(scheduler, name) for name in _SCHEDULE}


def _set_schedule(trainer: SFTTrainer, saved: dict[str, Any]) -> None:
    scheduler = _base_scheduler(trainer)
    vars(scheduler).update(saved)
    for group, rate in zip(trainer.optimizer.param_groups, saved["_last_lr"], strict=True):
        group["lr"] = rate


def _base_scheduler(trainer: SFTTrainer) -> Any:
    """The torch scheduler, which Accelerate wraps for DeepSpeed's own optimizers."""
    scheduler = trainer.lr_scheduler
    while hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    return scheduler
