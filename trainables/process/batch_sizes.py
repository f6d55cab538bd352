"""The same trial in other batches, which take other memory."""

from __future__ import annotations

from collections.abc import Iterator

from trainables.config import TrialConfig


def micro_batches(trial: TrialConfig, most: int) -> Iterator[int]:
    """Sizes of a micro-batch, from `most` down, at which the trial's batch stays the same."""
    per_worker = trial.train.batch_size // trial.workers
    return (size for size in range(most, 0, -1) if per_worker % size == 0)


def with_micro_batch(trial: TrialConfig, size: int) -> TrialConfig:
    """The same trial with another micro-batch size."""
    train = trial.train.model_copy(update={"micro_batch_size": size})
    return trial.model_copy(update={"train": train})


def with_eval_batch(trial: TrialConfig, size: int) -> TrialConfig:
    """The same trial with another evaluation batch size."""
    suite = trial.eval.model_copy(update={"batch_size": size})
    return trial.model_copy(update={"eval": suite})
