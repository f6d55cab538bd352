"""A chat template of the user's own, for a base that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
from evaluated import evaluated_base
from transformers import AutoTokenizer

from analysis.export.model_card import _loading
from analysis.export.weights import _write_weights, merge_adapter
from trainables.config import LoraConfig, ModelConfig
from trainables.data.chat_template import prompt_text
from trainables.data.chats import Example
from trainables.errors import UserError
from trainables.evaluation.base_scores import Base
from trainables.models.loading import load_model, load_tokenizer
from trainables.models.lora_adapter import peft_config
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from tune.config.sweep_config import SweepConfig

CHATS = ("data.chat_template=true", "eval.chat_template=true")
SMALL = ("eval.limit=4", "eval.general_text=null", "eval.kl_prompts=0")
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }} : {{ turn.content }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture
def own(sweep_config: SweepConfig, tmp_path: Path) -> Callable[..., ModelConfig]:
    def own(text: str = TEMPLATE, name: str = "chat.jinja") -> ModelConfig:
        (tmp_path / name).write_text(text)
        return sweep_config.model.model_copy(update={"chat_template": str(tmp_path / name)})

    return own


def test_it_writes_the_chats(own: Callable[..., ModelConfig], load: Callable[..., Any]) -> None:
    tokenizer, data = load_tokenizer(own()), load(*CHATS).data
    assert (
        prompt_text(tokenizer, data, Example("max 4 7", "7")) == "user : max 4 7 <eos>assistant : "
    )


@pytest.mark.parametrize("name", ["{}/absent", "{}/not_text", "package://none/chat.jinja"])
def test_one_that_cannot_be_read_is_named(
    name: str, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    (tmp_path / "not_text").write_bytes(b"\xff")
    own = sweep_config.model.model_copy(update={"chat_template": name.format(tmp_path)})
    with pytest.raises(UserError) as caught:
        load_tokenizer(own)
    assert [fault.field for fault in caught.value.faults] == ["model.chat_template"]


def test_the_base_is_known_by_its_text(
    own: Callable[..., ModelConfig], load: Callable[..., Any], tmp_path: Path
) -> None:
    config = load(*CHATS, *SMALL)

    def key(model: ModelConfig) -> str:
        folder = evaluated_base(config, tmp_path / "cache", model=model)
        return Base.load(folder).record.scores_key

    first = key(own())
    assert key(own(name="moved.jinja")) == first
    assert key(own(TEMPLATE.replace(" : ", " = "), name="other.jinja")) != first


def test_what_it_begins_answers_with_is_told_of_replayed_chats_too(
    own: Callable[..., ModelConfig], load: Callable[..., Any], tmp_path: Path
) -> None:
    thinking = TEMPLATE.replace(
        "{{ turn.content }}", "{{ '0 ' if turn.role == 'assistant' }}{{ turn.content }}"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "max 4 7 =", "completion": "7"}))
    for is_chat in ("true", "false"):
        replay = f"data.replay={{path: {rows}, share: 0.1, chat_template: {is_chat}}}"
        config = load(*SMALL, "eval.chat_template=true", replay)
        folder = evaluated_base(config, tmp_path / is_chat, model=own(thinking))
        told = [w for w in Base.load(folder).record.warnings if "begins answers with '0'" in w]
        assert bool(told) is (is_chat == "true")


def test_what_is_exported_has_it(own: Callable[..., ModelConfig], tmp_path: Path) -> None:
    model, weights, to = own(), tmp_path / "weights", tmp_path / "adapter"
    lora = peft_config(LoraConfig(rank=2, alpha=4))
    peft.get_peft_model(load_model(model), lora).save_pretrained(weights)
    to.mkdir()
    _write_weights("adapter", model, {}, weights, to)
    assert 'AutoTokenizer.from_pretrained("PATH")' in _loading("adapter", model)
    merge_adapter(model, weights, tmp_path / "merged")
    for folder in (to, tmp_path / "merged"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


def test_what_was_trained_with_it_is_exported_with_it_wherever_it_is(
    own: Callable[..., ModelConfig], make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = make_trial(model=own().model_dump(), train={"steps": 1})
    result = train_lora(trial, ListReporter())
    (tmp_path / "chat.jinja").unlink()
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    _write_weights("adapter", trial.model, {}, Path(result.weights_dir), adapter)
    merge_adapter(trial.model, Path(result.weights_dir), merged)
    for folder in (adapter, merged):
        assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
