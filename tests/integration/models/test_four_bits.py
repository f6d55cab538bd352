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
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, set_seed

from analysis.export.model_card import _loading
from analysis.export.weights import merge_adapter
from trainables.config import LoraConfig
from trainables.data.dataset import tokenize
from trainables.evaluation.drift import token_nll
from trainables.inspection.saved_weights import SavedWeights, base_weights
from trainables.metric_keys import VALIDATION_LOSS
from trainables.models.four_bit import keep_trainable
from trainables.models.loading import load_model, load_tokenizer, shared_base
from trainables.models.lora_adapter import adapt
from trainables.storage.locations import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.config import ModelConfig, TrialConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]


TRIALS: dict[str, dict[str, Any]] = {
    "rank 64, dropout": {"lora": {"rank": 64, "dropout": 0.1}, "train": {"steps": 4}},
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

    weights = alone["rank 64, dropout"].result.weights_dir
    tokens = torch.tensor([[5, 9, 17, 23, 42, 3]])
    adapted = peft.PeftModel.from_pretrained(load_model(in_4_bits), str(weights))
    merge_adapter(in_4_bits, Path(str(weights)), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        found, expected = merged(tokens).logits, adapted(tokens).logits
        untrained = load_model(in_4_bits)(tokens).logits
    assert (expected - untrained).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("in_bits", "dtype"), [(True, "bfloat16")])
def test_the_model_card_s_code_loads_the_base_in_the_dtype_of_the_scores(
    in_bits: bool, dtype: str, in_4_bits: ModelConfig, make: MakeTrial, run: RunTrial
) -> None:
    """Whose files are of fp32; the adapter is of fp32 as in training."""
    model = in_4_bits.model_copy(update={"load_in_4bit": in_bits, "dtype": dtype})
    trial = make(model, learning_rate=1e-2)
    measured = run(trial).measurements[-1].metrics[VALIDATION_LOSS]
    loaded: dict[str, Any] = {}
    exec(_loading("adapter", model).replace("PATH", trial.weights_dir), loaded)  # noqa: S102
    kinds = {("lora" in n, p.dtype) for n, p in loaded["model"].named_parameters()}
    of_base = {(False, getattr(torch, dtype)), *([(False, torch.uint8)] if in_bits else [])}
    assert kinds == {(True, torch.float32)} | of_base
    keep_trainable(loaded["model"])  # else bitsandbytes fails on CPUs that multiply bfloat16
    held_out = tokenize(trial.data, load_tokenizer(model), trial.data_seed).validation
    loss = token_nll(loaded["model"], held_out, 16)
    assert loss == pytest.approx(measured, rel=2e-3 if dtype == "bfloat16" else 1e-5)


def test_layers_whose_weights_are_the_other_way_round_are_merged_and_inspected(
    in_4_bits: ModelConfig, tmp_path: Path
) -> None:
    """GPT-2's are (I, O) in files and in a plain model, and (O, I) in one of 4 bits."""
    set_seed(0)
    tokenizer = load_tokenizer(in_4_bits)
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32}
    network = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(tokenizer), **shape))
    for saved in (network, tokenizer):
        saved.save_pretrained(tmp_path / "base")
    model = in_4_bits.model_copy(update={"name": str(tmp_path / "base")})
    adapted = adapt(load_model(model), LoraConfig(rank=2, alpha=2)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(model, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokens = torch.tensor([[5, 9, 17, 23, 42, 3]])
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits)
    original = network.transformer.h[0].attn.c_attn.weight
    assert base_weights(model)["transformer.h.0.attn.c_attn.weight"].shape == original.T.shape


@pytest.fixture
def files(in_4_bits: ModelConfig, tmp_path: Path) -> ModelConfig:
    """Of 4 bits themselves, as others have written them."""
    options = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
        "llm_int8_skip_modules": ["lm_head", "model.layers.0.self_attn"],
    }
    written = AutoModelForCausalLM.from_pretrained(
        resolve(in_4_bits.name),
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, **options),
        device_map={"": "cpu"},
    )
    for saved in (written, load_tokenizer(in_4_bits)):
        saved.save_pretrained(tmp_path / "files")
    return in_4_bits.model_copy(update={"name": str(tmp_path / "files")})


@pytest.mark.slow
def test_on_files_of_4_bits_trials_train_alone_and_in_slots_in_the_dtype_that_is_asked_for(
    files: ModelConfig, make: MakeTrial, run: RunTrial, tmp_path: Path
) -> None:
    for saved in (load_model(files).dequantize(), load_tokenizer(files)):
        saved.save_pretrained(tmp_path / "values")
    name = str(tmp_path / "values")
    values = files.model_copy(update={"name": name, "load_in_4bit": False})
    expected = run(make(values)).measurements
    assert_measured(run(make(files)).measurements, expected)
    slot = make(files)
    (in_slot,) = measured_in_slots(slot)
    assert_measured(in_slot, expected)
    of_4_bits = [p for p in shared_base(files).parameters() if hasattr(p, "quant_state")]
    assert not any(parameter.requires_grad for parameter in of_4_bits)
    # The base's own files say how they are loaded.
    assert "BitsAndBytesConfig" not in _loading("adapter", files)
    merge_adapter(files, Path(slot.weights_dir), tmp_path / "merged")
    merge_adapter(values, Path(slot.weights_dir), tmp_path / "expected")
    merged, of_values = (SavedWeights(tmp_path / name) for name in ("merged", "expected"))
    assert set(merged) == set(of_values)
    assert all(torch.allclose(merged[name], of_values[name], atol=1e-6) for name in merged)
