"""A model whose logits TRL's fused head would compute differently is not trained with it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.errors import TrialError
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import TrialConfig

pytestmark = [pytest.mark.integration, pytest.mark.in_process]

CAPS = {"recurrent_gemma": "logits_soft_cap", "gemma2": "final_logit_softcapping"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "cap", "is_told"),
    [
        ("gemma2", 0.01, False),  # TRL knows it
        # Small, as the logits of a model with random weights are, of which the largest is 0.9.
        ("recurrent_gemma", 0.01, True),
        ("recurrent_gemma", 0.45, True),  # 8% of it: more than rounding
        ("recurrent_gemma", 0.65, False),  # 3%
    ],
)
def test_a_cap_that_trl_does_not_know_is_told(
    kind: str,
    cap: float,
    is_told: bool,
    dtype: str,
    make_trial: Callable[..., TrialConfig],
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    set_seed(0)
    shape = SHAPE | {CAPS[kind]: cap, "vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    trial = make_trial(model={"name": str(tmp_path), "dtype": dtype, "attention": "eager"})
    refused = pytest.raises(TrialError, match="TRL's loss is not the model's")
    with refused if is_told else nullcontext():
        train_lora(trial, ListReporter())
