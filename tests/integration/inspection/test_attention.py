"""Attention: each model's own by default, and an error where another is not available."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from faults import faults
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import ModelConfig
from trainables.models.loading import load_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Callable[..., ModelConfig]:
    """A small model in a folder, with the embedded model's tokenizer."""

    def save(kind: str, attention: str | None = None) -> ModelConfig:
        set_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SHAPE)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return ModelConfig(name=str(tmp_path / kind), dtype="float32", attention=attention)

    return save


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_attention_that_a_model_does_not_take_is_named(
    attention: str, saved: Callable[..., ModelConfig]
) -> None:
    (fault,) = faults(load_model, saved("gemma2", attention))
    assert fault.field == "model.attention"
    assert attention in fault.rule
    assert "leave it out" in str(fault.remedy)
