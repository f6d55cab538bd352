"""Mixtures of experts: what LoRA leaves of them is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import peft
import pytest
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.base_evaluation import Base, evaluate_base
from trainables.config import LoraConfig, ModelConfig
from trainables.lora import peft_config
from trainables.lora_reach import left_by_lora

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
LORA = LoraConfig(rank=2, alpha=4)


def network(kind: str, vocabulary: int = 60, **options: Any) -> Any:
    set_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **SHAPE, **EXPERTS, **options)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Callable[..., ModelConfig]:
    """A small mixture in a folder, with the embedded model's tokenizer."""

    def save(kind: str, **options: Any) -> ModelConfig:
        folder = tmp_path / f"{kind}_{len(list(tmp_path.iterdir()))}"
        network(kind, len(tokenizer), **options).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return ModelConfig(name=str(folder), dtype="float32")

    return save


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("llama", None),
        ("mixtral", None),
        ("qwen3_moe", None),
        ("olmoe", None),
        ("gpt_oss", "GptOssExperts"),
        ("granitemoe", "GraniteMoeExperts"),
    ],
)
def test_experts_that_lora_leaves_as_they_are_are_named(kind: str, left: str | None) -> None:
    base = network(kind)
    before = [(name, type(module)) for name, module in base.named_modules()]
    told = left_by_lora(base)
    assert [(name, type(module)) for name, module in base.named_modules()] == before
    adapted = peft.get_peft_model(base, peft_config(LORA))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    has_experts = any("experts" in name for name, _ in before)
    assert any("experts" in name for name in trained) == (has_experts and left is None)
    assert told is None if left is None else f"{left}, no linear layers" in str(told)


def test_the_share_is_that_of_all_parameters_in_the_layers() -> None:
    base = network("granitemoe")
    sizes = {n: p.numel() for n, p in base.named_parameters() if ".layers." in n or ".norm" in n}
    attention = sum(size for name, size in sizes.items() if ".self_attn." in name)
    assert f"adapts {attention / sum(sizes.values()):.1%} of" in str(left_by_lora(base))


def test_of_a_base_that_peft_cannot_adapt_nothing_is_told() -> None:
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes))
    with pytest.raises(ValueError, match="incompatible with Mamba"):
        peft.get_peft_model(base, peft_config(LORA))
    assert left_by_lora(base) is None


def test_the_base_s_evaluation_warns(
    load: Callable[..., Any], saved: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    config = load("eval.limit=4", "eval.general_text=null")
    model = saved("granitemoe")
    folder = evaluate_base(model, config.data, config.eval, config.seed, tmp_path / "cache")
    assert any("GraniteMoeExperts" in told for told in Base.load(folder).record.warnings)
