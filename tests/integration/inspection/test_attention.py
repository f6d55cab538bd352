"""Attention: each model's own by default, and told of where another is asked for in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from evaluated import evaluated_base
from faults import faults
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import ModelConfig
from trainables.errors import UserError
from trainables.evaluation.base_scores import Base
from trainables.models.loading import load_model
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import TrialConfig


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Callable[..., ModelConfig]:
    """A small model in a folder, with the embedded model's tokenizer."""

    def save(kind: str, **options: Any) -> ModelConfig:
        set_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SHAPE, **options)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return ModelConfig(name=str(tmp_path / kind), dtype="float32")

    return save


def asking_for(attention: str, model: ModelConfig) -> ModelConfig:
    return ModelConfig.model_validate(model.model_dump() | {"attention": attention})


@pytest.mark.parametrize(
    ("kind", "options", "attention"),
    [("llama", {}, "sdpa"), ("gemma2", {}, "eager"), ("gpt_oss", EXPERTS, "eager")],
)
def test_a_model_has_the_attention_that_transformers_takes_for_it(
    kind: str, options: dict[str, Any], attention: str, saved: Callable[..., ModelConfig]
) -> None:
    assert load_model(saved(kind, **options)).config._attn_implementation == attention


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_attention_that_a_model_does_not_take_is_named(
    attention: str, saved: Callable[..., ModelConfig]
) -> None:
    (fault,) = faults(load_model, asking_for(attention, saved("gemma2")))
    assert fault.field == "model.attention"
    assert f"with {attention}: " in fault.rule
    assert fault.remedy == "leave it out, for what Transformers takes for this model"


def test_a_model_that_is_not_there_is_no_fault_of_the_attention(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(name=str(tmp_path / "attention"), attention="eager"))
    assert [fault.field for fault in caught.value.faults] == ["model.name"]


@pytest.mark.parametrize(("kind", "own"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_the_base_is_known_by_the_attention_that_it_was_evaluated_with(
    kind: str,
    own: str,
    saved: Callable[..., ModelConfig],
    load: Callable[..., Any],
    tmp_path: Path,
) -> None:
    config = load("eval.limit=4", "eval.general_text=null", "eval.kl_prompts=0")

    def evaluate(model: ModelConfig) -> Path:
        return evaluated_base(config, tmp_path / "cache", model=model)

    model = saved(kind)
    found = evaluate(model)
    assert evaluate(asking_for(own, model)) == found
    if own == "sdpa":
        other = evaluate(asking_for("eager", model))
        assert Base.load(other).record.scores_key != Base.load(found).record.scores_key


def test_a_model_without_sdpa_is_trained(
    make_trial: Callable[..., TrialConfig], saved: Callable[..., ModelConfig]
) -> None:
    trial = make_trial().model_copy(update={"model": saved("gemma2")})
    reporter = ListReporter()
    train_lora(trial, reporter)
    losses = [m.metrics["train/loss"] for m in reporter.measurements]
    assert losses[-1] < losses[0]
