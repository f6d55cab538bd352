"""The training loop of adapters and full fine-tuning: TRL's trainer, from settings to weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from trainables.compat.deepspeed import forget_modules
from trainables.compat.transformers import use_one_gpu
from trainables.config import TrialConfig
from trainables.data.dataset import TokenizedData, training_order
from trainables.data.tokenized import as_dataset
from trainables.process.collectives import barrier, is_first_worker
from trainables.records.schema import Measurement, TrialResult
from trainables.storage.disk import whole_folder
from trainables.training import optimizer_state
from trainables.training.attempt_folder import is_scratch, published_address
from trainables.training.best_weights import BestWeights
from trainables.training.checkpointing import AlreadyTrained, Checkpoints
from trainables.training.measuring import Measuring
from trainables.training.reporter import Reporter
from trainables.training.strengths import evaluate_strengths, starting_values
from trainables.training.trainer import Trainer

# Workers that have finished their part of an evaluation wait for the slowest one.
_LONGEST_EVALUATION_S = 24 * 3600


def sft_config(
    config: TrialConfig, samples: int, deepspeed: dict[str, Any] | None = None
) -> SFTConfig:
    """The trial as TRL's configuration, with DeepSpeed's settings if it has any."""
    train = config.train
    total = train.total_steps(samples)
    if not torch.cuda.is_available():
        # In groups it would be `cpu:0`, to which torch copies the base that a process shares.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    arguments = SFTConfig(
        output_dir=config.output_dir,
        max_steps=total,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        # Transformers' own `constant` has no warm-up.
        lr_scheduler_type=(
            "constant_with_warmup" if train.schedule == "constant" else train.schedule
        ),
        # The learning rate of a warm-up's first step is 0, which must not be the only step.
        warmup_steps=min(math.ceil(train.warmup * total), total - 1),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=config.model.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        train_sampling_strategy="sequential",  # `training_order` has shuffled already
        deepspeed=deepspeed,
        ddp_timeout=_LONGEST_EVALUATION_S,
        router_aux_loss_coef=0.0,  # the loss is the cross-entropy, of mixtures of experts too
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,  # the data are cut to size already
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    use_one_gpu(arguments)
    return arguments


def run_training(
    config: TrialConfig,
    reporter: Reporter,
    model: Any,
    tokenizer: Any,
    tokenized: TokenizedData,
    arguments: SFTConfig,
    save: Callable[[SFTTrainer, Path], None],
    base: Any = None,
) -> TrialResult:
    """Train to the end, reporting along the way; the model is left as trained.

    At the end it is evaluated at the trial's other strengths. Resumes from the newest valid
    checkpoint of any attempt, as if it had never been interrupted. `arguments` come from
    `sft_config`. Every worker calls `save`, which writes the trained weights into a folder. `base`
    is a base of its own, where the loss reads it and the model has no adapter.

    Raises:
        Diverged: the loss or the gradient norm is NaN or infinite.
        StopTrial: the reporter asked for it; there is a checkpoint of the last step.
        CheckpointLost: the checkpoint to resume from was deleted, or is not visible.
        EvaluationFailed: an evaluation raised an error; there is a checkpoint of its step.
        EvaluationOutOfMemory: the same, because memory ran out.
    """
    measuring = Measuring(config, reporter, tokenized, arguments.max_steps)
    checkpoints = Checkpoints(config, reporter, measuring)
    start = starting_values(config, model)
    with _adapter_kept(model):
        trainer = Trainer(
            config.method,
            config.loss,
            base,
            model=model,
            args=arguments,
            train_dataset=_ordered(config, tokenized, arguments.max_steps, checkpoints.first_step),
            processing_class=tokenizer,
        )
    best = BestWeights(config, partial(save, trainer))
    trainer.add_callback(_Steps(trainer, config.model.dtype, measuring, checkpoints))
    measuring.start(trainer)
    checkpoints.start(trainer, best)
    with _released(trainer):
        barrier()  # in its own groups DeepSpeed waits for minutes only
        with suppress(AlreadyTrained):
            trainer.train()
        evaluate_strengths(config, trainer.model, start, measuring, reporter)
        return conclude(config, measuring.last, best)


def conclude(config: TrialConfig, last: Measurement | None, best: BestWeights) -> TrialResult:
    """Save a trained trial's weights; every worker calls it.

    The driver removes the checkpoints when it records the trial's end: an attempt after a crash
    before that resumes from the last step, and has only the weights to write.
    """
    assert last is not None  # noqa: S101 - the last step is always reported
    weights = Path(config.weights_dir) if config.train.save_weights else None
    if weights:
        with whole_folder(weights, is_first_worker(), is_scratch(config)) as folder:
            best.save(folder)
    better = best.settle(last) if is_first_worker() else None
    return TrialResult(
        last=last,
        weights_dir=weights and published_address(config, weights),
        best_weights_dir=better and published_address(config, better),
    )


@contextmanager
def _adapter_kept(model: Any) -> Iterator[None]:
    """Keep the adapter of a 4-bit base in fp32; TRL would round it to bfloat16."""
    is_4bit = getattr(model, "is_loaded_in_4bit", False)
    kept = [(p, p.data) for p in model.parameters() if p.requires_grad] if is_4bit else []
    yield
    for parameter, values in kept:
        parameter.data = values


@contextmanager
def _released(trainer: SFTTrainer) -> Iterator[None]:
    """Destroy DeepSpeed's engine at the end: its own hooks would keep it in memory."""
    try:
        yield
    finally:
        if hasattr(trainer.model_wrapped, "destroy"):
            trainer.model_wrapped.destroy()
            forget_modules()


def _ordered(
    config: TrialConfig, tokenized: TokenizedData, total_steps: int, first_step: int
) -> Dataset:
    """The samples in training order, from the first step that is left to do."""
    batch = config.train.batch_size
    order = training_order(len(tokenized.train), total_steps * batch, config.seed)
    # TRL needs to see a sample even if none is left to train on.
    return as_dataset(tokenized.train).select(order[min(first_step, total_steps - 1) * batch :])


class _Steps(TrainerCallback):
    """Calls measuring, checkpoints and the method at the start and around each step."""

    def __init__(
        self, trainer: Trainer, dtype: str, measuring: Measuring, checkpoints: Checkpoints
    ) -> None:
        self._trainer, self._dtype = trainer, dtype
        self._measuring, self._checkpoints = measuring, checkpoints

    def on_train_begin(self, *arguments: Any, model: Any, **named: Any) -> None:
        """Resume from the checkpoint, now that everything is built and wrapped.

        Raises:
            AlreadyTrained: at the last step.
        """
        self._trainer.choose_loss(model, self._dtype)
        self._checkpoints.restore()
        self._checkpoints.evaluate_missing()

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        """Before a step's first micro-batch."""
        self._measuring.before_step()
        self._checkpoints.before_step()

    def on_pre_optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """With a step's gradients, clipped."""
        self._trainer.method.before_step(self._trainer.model)

    def on_optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """After a step's update."""
        step = self._trainer.state.global_step + 1
        method, model = self._trainer.method, self._trainer.model
        method.after_step(model, step)
        if method.restarts_optimizer(model, step):
            optimizer_state.restart(self._trainer.optimizer)

    def on_log(self, *arguments: Any, logs: dict[str, float], **named: Any) -> None:
        """After a step; the summary after the last one has no loss."""
        if "loss" in logs:
            self._measuring.after_step(logs)
            self._checkpoints.after_step()
