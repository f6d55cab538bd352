"""A base of 4 bits: LoRA trains, measures and exports on what these bits stand for.

The reference is a plain model that has exactly the values of the 4 bits as its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from evaluated import evaluated_base
from in_slots import measured_in_slots
from measured import assert_measured
from transformers import AutoModelForCausalLM

from analysis.export.weights import merge_adapter
from trainables.inspection.saved_weights import base_weights
from trainables.models.loading import load_model, load_tokenizer, shared_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_trials import Run

    from trainables.config import ModelConfig, TrialConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]


TRIALS: dict[str, dict[str, Any]] = {
    "rank 64": {"lora": {"rank": 64}, "train": {"steps": 4}},
}


@pytest.fixture(scope="module")
def in_4_bits(sweep_config: Any) -> ModelConfig:
    model: ModelConfig = sweep_config.model.model_copy(update={"load_in_4bit": True})
    return model


@pytest.fixture(scope="module")
def of_the_values(in_4_bits: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A plain model of the values that the 4 bits stand for."""
    folder = tmp_path_factory.mktemp("values")
    load_model(in_4_bits).dequantize().save_pretrained(folder)
    load_tokenizer(in_4_bits).save_pretrained(folder)
    return in_4_bits.model_copy(update={"name": str(folder), "load_in_4bit": False})


@pytest.fixture(scope="module")
def make(make_trial: MakeTrial, sweep_config: Any, base_cache: Path) -> MakeTrial:
    """A trial of a model, with that model's own base evaluation."""

    def make(model: ModelConfig, **changes: Any) -> TrialConfig:
        base_dir = evaluated_base(sweep_config, base_cache, model=model)
        return make_trial(**changes, model=model.model_dump(), base_dir=str(base_dir))

    return make


@pytest.fixture(scope="module")
def alone(in_4_bits: ModelConfig, make: MakeTrial, run: RunTrial) -> dict[str, Run]:
    return {name: run(make(in_4_bits, **changes)) for name, changes in TRIALS.items()}


def test_each_block_of_64_weights_has_sixteen_values_at_most(
    in_4_bits: ModelConfig, of_the_values: ModelConfig, base_model: Any
) -> None:
    values = base_weights(in_4_bits)
    name = "model.layers.0.mlp.up_proj.weight"
    assert all(len(block.unique()) <= 16 for block in values[name].view(-1, 64)[:50])
    original = base_model.state_dict()
    assert 0.01 < float((values[name] - original[name]).norm() / original[name].norm()) < 0.2
    assert torch.equal(values["lm_head.weight"], original["lm_head.weight"])
    saved = base_weights(of_the_values)
    assert all(torch.equal(values[name], saved[name]) for name in saved)


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_measures_what_the_values_of_the_bits_give(
    name: str, alone: dict[str, Run], of_the_values: ModelConfig, make: MakeTrial, run: RunTrial
) -> None:
    expected = run(make(of_the_values, **TRIALS[name]))
    assert_measured(alone[name].measurements, expected.measurements)


def test_slots_share_a_base_of_4_bits(
    alone: dict[str, Run], in_4_bits: ModelConfig, make: MakeTrial
) -> None:
    trials = [make(in_4_bits, **changes) for changes in TRIALS.values()]
    for name, measured in zip(TRIALS, measured_in_slots(*trials), strict=True):
        assert_measured(measured, alone[name].measurements)


def test_the_base_is_given_back_as_it_was(alone: dict[str, Run], in_4_bits: ModelConfig) -> None:
    base = shared_base(in_4_bits)
    fresh = load_model(in_4_bits).state_dict()
    assert all(torch.equal(weight, fresh[name]) for name, weight in base.state_dict().items())
    assert {p.dtype for p in base.parameters() if not p.requires_grad} == {torch.uint8}
    assert not any("lora" in name for name, _ in base.named_modules())


def test_a_merged_model_computes_what_adapter_and_4_bits_do(
    alone: dict[str, Run], in_4_bits: ModelConfig, tmp_path: Path
) -> None:
    import peft

    weights = alone["rank 64"].result.weights_dir
    tokens = torch.tensor([[5, 9, 17, 23, 42, 3]])
    adapted = peft.PeftModel.from_pretrained(load_model(in_4_bits), str(weights))
    merge_adapter(in_4_bits, Path(str(weights)), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        found, expected = merged(tokens).logits, adapted(tokens).logits
        untrained = load_model(in_4_bits)(tokens).logits
    assert (expected - untrained).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
