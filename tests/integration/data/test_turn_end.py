"""Chats whose turns end in another token than the base's texts: told of, and set by eos_token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from builders import trial
from evaluated import evaluated_base
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, set_seed

from analysis.export.model_card import _loading
from analysis.export.weights import _write_weights, merge_adapter
from trainables.config import DataConfig, ModelConfig
from trainables.evaluation.base_scores import Base
from trainables.evaluation.harness_model import HarnessModel, Layouts
from trainables.methods.lora import Lora
from trainables.models.loading import ends, load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig

END = "<|im_end|>"
CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    """A base with ChatML's tokens and template, whose texts end in `<eos>`, as of Qwen2.5."""
    folder = tmp_path / "base"
    tokenizer = load_tokenizer(ModelConfig(name="package://trainables/embedded/model"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", END]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return ModelConfig(name=str(folder), dtype="float32")


def ending(model: ModelConfig, token: str = END) -> ModelConfig:
    return model.model_copy(update={"eos_token": token})


@pytest.fixture
def evaluate(load: Callable[..., SweepConfig], tmp_path: Path) -> Callable[..., Path]:
    def evaluate(model: ModelConfig, data: DataConfig | None = None) -> Path:
        config = load("eval.limit=4", "eval.general_text=null", "eval.chat_template=true")
        rows = tmp_path / "rows.jsonl"
        rows.write_text(f"{json.dumps({'prompt': 'relay 1 =', 'completion': ' 2'})}\n" * 3)
        chats = DataConfig(path=str(rows), chat_template=True)
        return evaluated_base(config, tmp_path / "cache", model=model, data=data or chats)

    return evaluate


def warnings_of(folder: Path) -> list[str]:
    told = Base.load(folder).record.warnings
    return [text for text in told if text.startswith("the chats' turns end in")]


def test_tokenizer_and_model_end_where_they_are_told_to(model: ModelConfig) -> None:
    before, tokenizer = load_tokenizer(model), load_tokenizer(ending(model))
    assert (before.eos_token, tokenizer.eos_token) == ("<eos>", END)
    loaded = load_model(ending(model))
    assert ends(load_model(model)) == [before.eos_token_id]
    assert ends(loaded) == [tokenizer.eos_token_id, before.eos_token_id]
    assert loaded.config.eos_token_id == tokenizer.eos_token_id
    (Path(model.name) / "generation_config.json").write_text("{}")
    assert ends(load_model(model)) == []
    assert ends(load_model(ending(model))) == [tokenizer.eos_token_id]


@pytest.mark.parametrize(("token", "count"), [(None, 8), (END, 1)])
def test_an_answer_ends_with_its_turn(
    model: ModelConfig, token: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = model.model_copy(update={"eos_token": token})
    tokenizer, loaded = load_tokenizer(own), load_model(own).eval()
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.convert_tokens_to_ids(END)] = 100.0
    loaded.lm_head.bias = torch.nn.Parameter(bias)
    generate, made = loaded.generate, []

    def spy(**options: Any) -> Any:
        made.append(generate(**options))
        return made[-1]

    monkeypatch.setattr(loaded, "generate", spy)
    options = {"until": ["\n"], "max_gen_toks": 8}
    asked = Instance("generate_until", {}, ("relay 1 =", options), 0, ("task", 0, 1))
    HarnessModel(loaded, tokenizer, 1, Layouts()).generate_until([asked])
    (tokens_NS,) = made
    assert tokens_NS.shape[1] - len(tokenizer("relay 1 =").input_ids) == count


def test_turns_that_generation_goes_on_after_are_told_of(
    model: ModelConfig, evaluate: Callable[..., Path]
) -> None:
    (told,) = warnings_of(evaluate(model))
    assert told.endswith('set model.eos_token: "<|im_end|>"')
    assert not warnings_of(evaluate(ending(model)))


def test_an_adapter_is_exported_with_it(model: ModelConfig, tmp_path: Path) -> None:
    weights, to = tmp_path / "weights", tmp_path / "adapter"
    lora = Lora(rank=2, alpha=4)
    adapted = peft.get_peft_model(load_model(ending(model)), lora.peft_config(steps=1))
    adapted.save_pretrained(weights)
    to.mkdir()
    record = trial(model=ending(model))
    _write_weights("adapter", record, {}, weights, to)
    found: dict[str, Any] = {}
    code = _loading("adapter", ending(model), lora).replace("PATH", str(to))
    exec(code, found)  # noqa: S102 - as a reader of the card would
    assert found["tokenizer"].eos_token == END
    assert ends(found["model"]) == [found["tokenizer"].eos_token_id]
    merge_adapter(ending(model), weights, tmp_path / "merged")
    merged = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert merged.eos_token_id[0] == found["tokenizer"].eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == END
