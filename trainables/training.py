"""The training run that LoRA and full fine-tuning share: TRL's SFTTrainer, and our reports."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from trainables import metric_keys
from trainables.base_evaluation import Base, compare_with_base, write_items
from trainables.config import TrialConfig
from trainables.data import TokenizedData
from trainables.drift import token_nll
from trainables.errors import Diverged
from trainables.evaluation import Evaluator
from trainables.records import Measurement, TrialResult
from trainables.reporter import Reporter

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
        data_seed=config.seed,
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

    Raises:
        Diverged: the loss or the gradient norm is NaN or infinite.
    """
    reports = _Reports(config, reporter, tokenizer, tokenized, arguments.max_steps)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([dict(sample) for sample in tokenized.train]),
        processing_class=tokenizer,
        callbacks=[reports],
    )
    reports.start(trainer)
    trainer.train()
    last = reports.last
    assert last is not None  # noqa: S101 - the last step is always reported
    return trainer, TrialResult(last=last, skipped_samples=tokenized.skipped)


class _Reports(TrainerCallback):
    """Turns the trainer's log into measurements; evaluates at the report steps."""

    def __init__(
        self,
        config: TrialConfig,
        reporter: Reporter,
        tokenizer: Any,
        tokenized: TokenizedData,
        total_steps: int,
    ) -> None:
        self._config = config
        self._reporter = reporter
        self._tokenizer = tokenizer
        self._validation = tokenized.validation
        self._base = Base.load(Path(config.base_dir))
        self._evaluator = Evaluator(config.eval, tokenizer)
        self._report_steps = config.train.report_steps(total_steps)
        self._log_steps = config.train.log_steps(total_steps)
        self._losses: list[float] = []
        self._evaluation_seconds = 0.0
        self._started = time.perf_counter()
        self.last: Measurement | None = None

    def start(self, trainer: SFTTrainer) -> None:
        """Give it the trainer it calls back from, and start the clock."""
        self._trainer = trainer
        self._trainable = _count_trainable(trainer.model)
        self._started = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """After every step: watch for divergence, report at the steps that are asked for."""
        if logs is None or "loss" not in logs:
            return
        step, loss = state.global_step, float(logs["loss"])
        # DeepSpeed keeps it to itself in one case: stage 0 in float32.
        norm = {metric_keys.GRAD_NORM: float(logs["grad_norm"])} if "grad_norm" in logs else {}
        if not all(map(math.isfinite, (loss, *norm.values()))):
            raise Diverged(f"step {step}: loss {loss}, gradient norm {logs.get('grad_norm')}")
        self._losses.append(loss)
        if step not in self._report_steps | self._log_steps:
            return
        metrics = norm | self._training_metrics(state, float(logs["learning_rate"]))
        if step in self._report_steps:
            metrics |= self._evaluate(step)
        metrics |= self._costs(state)
        self.last = Measurement(step=step, metrics=metrics, time=time.time())
        self._reporter.report(self.last)

    def _training_metrics(self, state: TrainerState, learning_rate: float) -> dict[str, float]:
        loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        return {
            metric_keys.TRAIN_LOSS: loss,
            metric_keys.LEARNING_RATE: learning_rate,
            metric_keys.GLOBAL_STEP: float(state.global_step),
            metric_keys.EPOCH: float(state.epoch or 0.0),
            metric_keys.TOKENS_SEEN: float(state.num_input_tokens_seen),
        }

    def _evaluate(self, step: int) -> dict[str, float]:
        """On rank 0; with DeepSpeed on every rank: a ZeRO-3 forward pass needs them all."""
        if not (self._trainer.is_world_process_zero() or self._is_sharded()):
            return {}
        started = time.perf_counter()
        model = self._trainer.model
        evaluation, metrics = compare_with_base(
            self._base, model, self._tokenizer, self._evaluator, self._config.eval
        )
        if self._validation:
            metrics[metric_keys.VALIDATION_LOSS] = token_nll(
                model, self._validation, self._config.eval.batch_size
            )
        if self._trainer.is_world_process_zero():
            items = Path(self._config.output_dir) / "items" / f"step_{step:08d}.jsonl"
            write_items(items, evaluation.items)
        self._evaluation_seconds += time.perf_counter() - started
        return metrics

    def _is_sharded(self) -> bool:
        return self._config.deepspeed is not None and self._trainer.args.world_size > 1

    def _costs(self, state: TrainerState) -> dict[str, float]:
        elapsed = time.perf_counter() - self._started
        training = elapsed - self._evaluation_seconds
        workers = self._config.workers
        on_gpu = torch.cuda.is_available()
        peak = torch.cuda.max_memory_reserved() if on_gpu else _peak_resident_bytes()
        return {
            metric_keys.TRAIN_SECONDS: training,
            metric_keys.EVAL_SECONDS: self._evaluation_seconds,
            metric_keys.TOKENS_PER_SECOND: state.num_input_tokens_seen / training / workers,
            metric_keys.MAX_RESERVED: peak / 2**30,
            metric_keys.GPU_HOURS: elapsed / 3600 * workers * self._config.gpus_per_worker,
            metric_keys.TRAINABLE_PARAMETERS: float(self._trainable),
        }


def _count_trainable(model: Any) -> int:
    """Trainable parameters; under ZeRO-3 a shard knows its whole as `ds_numel`."""
    return sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in model.parameters()
        if parameter.requires_grad
    )


def _peak_resident_bytes() -> int:
    """Of this process since it began, which may be before this trial."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
