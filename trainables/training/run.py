"""The training that LoRA and full fine-tuning share: TRL's trainer, from settings to weights."""

from __future__ import annotations

import math
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
from trainables.training.attempt_folder import is_scratch, published_address
from trainables.training.best_weights import BestWeights
from trainables.training.checkpointing import AlreadyTrained, Checkpoints
from trainables.training.measuring import Measuring
from trainables.training.reporter import Reporter
from trainables.training.trainer import Trainer

# Workers that are done with their part of an evaluation wait for the slowest one.
_LONGEST_EVALUATION_S = 24 * 3600


def sft_config(
    config: TrialConfig, samples: int, deepspeed: dict[str, Any] | None = None
) -> SFTConfig:
    """The trial as TRL's configuration; with DeepSpeed's settings, `full_sft.prepare` makes it."""
    train = config.train
    total = train.total_steps(samples)
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
) -> TrialResult:
    """Train to the end, reporting along the way; the model is left as trained.

    Resumes from the newest valid checkpoint of any attempt, as if nothing had happened. The newest
    two stay, see `conclude`.

    The model has its adapter if there is one, and `arguments` come from `sft_config`. Every worker
    calls `save`, which writes the trained weights into a folder.

    Raises:
        Diverged: the loss or the gradient norm is NaN or infinite.
        StopTrial: the reporter asked for it; a checkpoint holds the training's state.
        CheckpointLost: what it was to resume from is gone, or is not shown to this worker.
        EvaluationFailed: an evaluation raised an error; a checkpoint holds the step.
        EvaluationOutOfMemory: the same, because memory ran out.
    """
    measuring = Measuring(config, reporter, tokenized, arguments.max_steps)
    checkpoints = Checkpoints(config, reporter, measuring)
    with _routers_coefficient_kept(model), _adapter_kept(model):
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_ordered(config, tokenized, arguments.max_steps, checkpoints.first_step),
            processing_class=tokenizer,
        )
    best = BestWeights(config, partial(save, trainer))
    trainer.add_callback(_Steps(trainer, config.model.dtype, measuring, checkpoints))
    measuring.start(trainer)
    checkpoints.start(trainer, best)
    with _letting_go_of(trainer):
        barrier()  # in its own groups DeepSpeed waits for minutes only
        with suppress(AlreadyTrained):
            trainer.train()
        return conclude(config, measuring.last, best)


def conclude(config: TrialConfig, last: Measurement | None, best: BestWeights) -> TrialResult:
    """Save a trained trial's weights; every worker calls it.

    The checkpoints stay until the trial's end is recorded, and are removed by whoever records it:
    an attempt after a crash in between finds the last step's, and has only the weights to write.
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
def _routers_coefficient_kept(model: Any) -> Iterator[None]:
    """Keep a mixture of experts' own weight of its routers' loss, for those who train it further.

    TRL needs the 0.0 of `sft_config` only to turn that loss off, and would have it saved.
    """
    text = model.config.get_text_config()
    own = getattr(text, "router_aux_loss_coef", None)
    yield
    if own is not None:
        text.router_aux_loss_coef = own


@contextmanager
def _adapter_kept(model: Any) -> Iterator[None]:
    """Keep the adapter of a base of 4 bits in fp32; TRL would round it to bfloat16."""
    is_of_4_bits = getattr(model, "is_loaded_in_4bit", False)
    kept = [(p, p.data) for p in model.parameters() if p.requires_grad] if is_of_4_bits else []
    yield
    for parameter, values in kept:
        parameter.data = values


@contextmanager
def _letting_go_of(trainer: SFTTrainer) -> Iterator[None]:
    """Destroy DeepSpeed's engine: its own hooks would keep it, with all it holds, in memory."""
    try:
        yield
    finally:
        if hasattr(trainer.model_wrapped, "destroy"):
            trainer.model_wrapped.destroy()
            forget_modules()


def _ordered(
    config: TrialConfig, tokenized: TokenizedData, total_steps: int, first_step: int
) -> Dataset:
    """The samples in training order, from the first step that is still to do."""
    batch = config.train.batch_size
    order = training_order(len(tokenized.train), total_steps * batch, config.seed)
    # TRL needs to see a sample even if none is left to train on.
    return as_dataset(tokenized.train).select(order[min(first_step, total_steps - 1) * batch :])


class _Steps(TrainerCallback):
    """Has each do its part of a training at its beginning and around each step."""

    def __init__(
        self, trainer: Trainer, dtype: str, measuring: Measuring, checkpoints: Checkpoints
    ) -> None:
        self._trainer, self._dtype = trainer, dtype
        self._measuring, self._checkpoints = measuring, checkpoints

    def on_train_begin(self, *arguments: Any, model: Any, **named: Any) -> None:
        """Go on where the checkpoint was taken, now that everything is built and wrapped.

        Raises:
            AlreadyTrained: at the last step.
        """
        self._trainer.choose_loss(model, self._dtype)
        self._checkpoints.restore()
        self._checkpoints.make_up()

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        """Before a step's first micro-batch."""
        self._measuring.before_step()
        self._checkpoints.before_step()

    def on_log(self, *arguments: Any, logs: dict[str, float], **named: Any) -> None:
        """After a step, or after all with a summary, which has no loss of a step."""
        if "loss" in logs:
            self._measuring.after_step(logs)
            self._checkpoints.after_step()
