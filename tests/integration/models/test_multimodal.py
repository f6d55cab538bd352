"""A model that also takes images, trained on text: LoRA adapts its text decoder alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from in_slots import measured_in_slots
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma3Config, set_seed

from trainables.config import ModelConfig
from trainables.methods.lora import Lora
from trainables.models.adapter import Adapted, text_decoder
from trainables.models.loading import load_model, shared_base
from trainables.training.adapter_sft import train_adapter
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TEXT = SIZES | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "layer_types": ["full_attention"] * 2,
}
VISION = SIZES | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
DECODER = "model.language_model"
# q, k, v, o, gate, up, down: in + out of each, of both layers
WIDTHS = 2 * (32 + 24 + 24 + 32 + 40 + 40 + 40)


@pytest.fixture
def model(tokenizer: Any, tmp_path: Path) -> ModelConfig:
    set_seed(0)
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
    config = Gemma3Config(
        text_config=TEXT | vocabulary,
        vision_config=VISION,
        mm_tokens_per_image=4,
        boi_token_index=len(tokenizer) - 3,
        eoi_token_index=len(tokenizer) - 2,
        image_token_index=len(tokenizer) - 1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return ModelConfig(name=str(tmp_path / "base"), dtype="float32")


def test_only_what_text_passes_through_is_adapted(model: ModelConfig) -> None:
    base = shared_base(model)
    assert type(base).__name__ == "Gemma3ForConditionalGeneration"
    assert text_decoder(base) == DECODER
    adapted = Adapted(base, Lora(rank=2, alpha=4), steps=1)
    names = adapted.model.base_model.targeted_module_names
    assert {name[: len(DECODER)] for name in names} == {DECODER}
    assert len(names) == 2 * 7
    assert adapted.remove()


@pytest.mark.slow
def test_a_slot_measures_what_a_trial_does_alone(make_trial: MakeTrial, model: ModelConfig) -> None:
    alone = make_trial().model_copy(update={"model": model})
    in_slot = alone.model_copy(update={"output_dir": make_trial().output_dir})
    reporter = ListReporter()
    train_adapter(alone, reporter)
    runs = (reporter.measurements, *measured_in_slots(in_slot))
    ours, theirs = ([m.metrics for m in run] for run in runs)
    losses = [[metrics["train/loss"] for metrics in curve] for curve in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][-1] < losses[0][0]
    assert {m["params/trainable"] for m in (ours[-1], theirs[-1])} == {4 * WIDTHS}
    for trial in (alone, in_slot):
        saved = PeftModel.from_pretrained(load_model(model), f"{trial.output_dir}/weights")
        assert len(saved.base_model.targeted_module_names) == 2 * 7
