"""Samples from which a method computes where its adapter starts."""

from __future__ import annotations

from typing import Any

from trainables.config import TrialConfig
from trainables.config.eval_config import GENERAL_TEXT_TOKENS
from trainables.data.dataset import Sample, TokenizedData, text_ids, training_order
from trainables.data.rows import read_general_text
from trainables.data.tokenized import as_dataset

_TEXTS = 256  # as CorDA's authors and PEFT advise
_SAMPLES = 64  # as in PEFT's example of LoRA-GA


def start_samples(
    trial: TrialConfig, tokenizer: Any, tokenized: TokenizedData
) -> list[Sample] | None:
    """The first general texts, or the first samples of the training; None if none are needed.

    Raises:
        UserError: the file of `eval.general_text` can no longer be read.
    """
    if trial.method.starts_from is None:
        return None
    if trial.method.starts_from == "data":
        count = min(_SAMPLES, len(tokenized.train))
        order = training_order(len(tokenized.train), count, trial.seed)
        return list(as_dataset(tokenized.train).select(order))
    assert trial.eval.general_text is not None  # noqa: S101 - else the sweep file is refused
    texts = read_general_text(trial.eval.general_text)[:_TEXTS]
    tokens = (text_ids(tokenizer, text)[:GENERAL_TEXT_TOKENS] for text in texts)
    return [Sample(input_ids=ids, labels=ids) for ids in tokens]
