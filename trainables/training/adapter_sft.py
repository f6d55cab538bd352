"""An adapter's trial: PEFT on the process's shared base, trained by TRL."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from trainables.config import ModelConfig, TrialConfig
from trainables.data.start_samples import start_samples
from trainables.data.tokenized import trial_inputs
from trainables.models.adapter import Adapted
from trainables.models.loading import save_own_tokenizer, shared_base
from trainables.process.collectives import is_first_worker
from trainables.records.schema import TrialResult
from trainables.training.reporter import Reporter
from trainables.training.training_loop import run_training, sft_config

logger = logging.getLogger(__name__)


def train_adapter(config: TrialConfig, reporter: Reporter) -> TrialResult:
    """Train one adapter; saves it as a standard PEFT folder.

    The base model stays unchanged in the process for the next trial; where it does not, the next
    trial loads it anew. Checkpoints and errors are those of `run_training`.
    """
    base = shared_base(config.model)
    tokenizer, tokenized = trial_inputs(config)
    set_seed(config.seed)
    steps = config.train.total_steps(len(tokenized.train))
    samples = start_samples(config, tokenizer, tokenized)
    adapted = Adapted(base, config.method, steps, samples)
    try:
        arguments = sft_config(config, len(tokenized.train))
        save = partial(_save, config.model)
        return run_training(config, reporter, adapted.model, tokenizer, tokenized, arguments, save)
    finally:
        if not adapted.remove():
            shared_base.cache_clear()
            logger.warning(
                "%s changed the shared base model, which is loaded anew", config.method.title
            )


def _save(model: ModelConfig, trainer: Any, folder: Path) -> None:
    """Save the adapter as a standard PEFT folder, with the tokenizer if it is not the base's."""
    if is_first_worker():
        # By default an adapted embedding is saved whole beside its update.
        trainer.model.save_pretrained(folder, save_embedding_layers=False)
        save_own_tokenizer(model, trainer.processing_class, folder)
