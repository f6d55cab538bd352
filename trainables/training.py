"""The training run that LoRA and full fine-tuning share: TRL's SFTTrainer, reports, checkpoints."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from trainables import checkpoint
from trainables.config import TrialConfig
from trainables.data import TokenizedData, training_order
from trainables.records import TrialResult
from trainables.reporter import Reporter
from trainables.reports import Reports

# Rank 0 evaluates while the others wait for the next gradient exchange.
_LONGEST_EVALUATION_S = 24 * 3600


def sft_config(
    config: TrialConfig, samples: int, deepspeed: dict[str, Any] | None = None
) -> SFTConfig:
    """The trial in TRL's words. Build it before loading a model that ZeRO-3 shall shard."""
    train = config.train
    total = train.total_steps(samples)
    return SFTConfig(
        output_dir=config.output_dir,
        max_steps=total,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=train.schedule,
        warmup_steps=math.ceil(train.warmup * total),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=config.model.dtype == "bfloat16",
        fp16=config.model.dtype == "float16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        train_sampling_strategy="sequential",  # `training_order` has shuffled already
        deepspeed=deepspeed,
        ddp_timeout=_LONGEST_EVALUATION_S,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,  # the data are cut to size already
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def run_training(
    config: TrialConfig,
    reporter: Reporter,
    model: Any,
    tokenizer: Any,
    tokenized: TokenizedData,
    arguments: SFTConfig,
) -> tuple[SFTTrainer, TrialResult]:
    """Train to the end, reporting on the way; returns the trainer, whose model is the result.

    Goes on from the newest valid checkpoint of an earlier attempt, as if nothing had happened.

    Raises:
        Diverged: the loss or the gradient norm is NaN or infinite.
    """
    reports = Reports(config, reporter, tokenizer, tokenized, arguments.max_steps)
    resumed = checkpoint.newest_valid([Path(folder) for folder in config.earlier_attempts])
    checkpoints = Checkpoints(config, reports, arguments.max_steps, resumed)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=_ordered(config, tokenized, arguments.max_steps, checkpoints.first_step),
        processing_class=tokenizer,
        callbacks=[reports, checkpoints],
    )
    reports.start(trainer)
    checkpoints.start(trainer)
    trainer.train()
    last = reports.last
    assert last is not None  # noqa: S101 - the last step is always reported
    return trainer, TrialResult(last=last, skipped_samples=tokenized.skipped)


def _ordered(
    config: TrialConfig, tokenized: TokenizedData, total_steps: int, first_step: int
) -> Dataset:
    """The samples in the order they are trained on, from the first step that is still to do."""
    batch = config.train.batch_size
    order = training_order(len(tokenized.train), total_steps * batch, config.seed)
    samples = Dataset.from_list([dict(sample) for sample in tokenized.train])
    return samples.select(order[first_step * batch :])


class Checkpoints(TrainerCallback):
    """Saves the training after each evaluation, and puts it back where one is resumed.

    The newest two are kept, so that one is left if the other turns out damaged.
    """

    def __init__(
        self, config: TrialConfig, reports: Reports, total_steps: int, resumed: Path | None
    ) -> None:
        self._attempt_dir = Path(config.output_dir)
        self._reports = reports
        self._total_steps = total_steps
        self._resumed = resumed
        self._progress = checkpoint.load_progress(resumed) if resumed else None

    @property
    def first_step(self) -> int:
        """Optimizer steps that are done already."""
        return self._progress.step if self._progress else 0

    def start(self, trainer: SFTTrainer) -> None:
        """Give it the trainer it calls back from."""
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put parameters, moments and schedule back; everything is built and wrapped by now."""
        if self._resumed is None or self._progress is None:
            return
        trainer, progress = self._trainer, self._progress
        checkpoint.load_training_state(self._resumed, trainer.model, trainer.optimizer)
        _set_schedule(trainer, progress.scheduler)
        state.global_step = progress.step
        trainer._globalstep_last_logged = progress.step  # else the first loss is spread over all
        state.num_input_tokens_seen = progress.tokens_seen
        self._reports.restore(progress.reports)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the random state back, after the data loader has drawn from it for itself."""
        if self._resumed is not None:
            checkpoint.load_random_state(self._resumed, args.process_index)
            self._resumed = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save after an evaluation, but for the last, where the weights follow at once."""
        step = state.global_step
        if step >= self._total_steps or not self._reports.is_report_step(step):
            return
        trainer = self._trainer
        progress = checkpoint.Progress(
            step, state.num_input_tokens_seen, _schedule(trainer), self._reports.carry()
        )
        folder = checkpoint.checkpoint_dir(self._attempt_dir, step)
        checkpoint.save(
            folder,
            trainer.model,
            trainer.optimizer,
            progress,
            args.process_index,
            args.world_size,
        )
        if trainer.is_world_process_zero():
            checkpoint.keep_newest(self._attempt_dir, 2)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A finished training needs no checkpoint."""
        if self._trainer.is_world_process_zero():
            shutil.rmtree(self._attempt_dir / "checkpoints", ignore_errors=True)


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
    """The torch scheduler inside Accelerate's wrapper."""
    scheduler = trainer.lr_scheduler
    while hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    return scheduler
