"""A trial's settings and fate as columns of a table, the same in results.csv and in notebooks."""

from __future__ import annotations

from collections.abc import Callable

from trainables.records.schema import TrialRecord


def _modules(record: TrialRecord) -> str | None:
    lora = record.config.lora
    modules = lora.target_modules if lora else None
    return " ".join(modules) if isinstance(modules, tuple) else modules


SETTINGS: dict[str, Callable[[TrialRecord], object]] = {
    "number": lambda r: r.number,
    "trial_id": lambda r: r.config.trial_id,
    "confirms": lambda r: r.confirms,
    "seed": lambda r: r.config.seed,
    "method": lambda r: r.config.method,
    "lora/rank": lambda r: r.rank,
    "lora/alpha": lambda r: r.config.lora and r.config.lora.alpha,
    "lora/scaling": lambda r: r.config.lora and r.config.lora.scaling,
    "lora/target_modules": _modules,
    "lora/dropout": lambda r: r.config.lora and r.config.lora.dropout,
    "lora/rslora": lambda r: r.config.lora and r.config.lora.rslora,
    "lora/dora": lambda r: r.config.lora and r.config.lora.dora,
    "learning_rate": lambda r: r.config.learning_rate,
    "batch_size": lambda r: r.config.train.batch_size,
    "micro_batch_size": lambda r: r.config.train.micro_batch_size,
    "epochs": lambda r: r.epochs,
    "steps": lambda r: r.config.train.steps,
    "warmup": lambda r: r.config.train.warmup,
    "weight_decay": lambda r: r.config.train.weight_decay,
    "status": lambda r: r.status.value,
    "reason": lambda r: r.reason,
    "attempt": lambda r: r.attempt,
    "seconds": lambda r: r.seconds,
    "weights_dir": lambda r: r.weights_dir,
    "best_weights_dir": lambda r: r.best_weights_dir,
}


def setting_columns(record: TrialRecord) -> dict[str, object]:
    """A trial's values of the columns; None for those of LoRA if it is full fine-tuning."""
    return {column: value(record) for column, value in SETTINGS.items()}
