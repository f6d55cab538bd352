"""Weight updates from files, against what is in memory, against PEFT, and one matrix at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny_decoder
import torch
from builders import trial_config
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from trainables.config import LoraConfig, ModelConfig
from trainables.errors import CannotInspect
from trainables.inspection.saved_weights import SavedWeights, base_weights
from trainables.inspection.spectra import update_spectrum
from trainables.inspection.updates import updates

CPU = torch.device("cpu")
LAYERS = 3
FULL = trial_config(method="full")


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def tuned_copy(base: Any) -> Any:
    tuned = llama()
    tuned.load_state_dict(base.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return tuned


@pytest.mark.parametrize("shard_size", ["5GB", "10KB"], ids=["one file", "shards"])
def test_full_update_from_files_equals_the_one_in_memory(tmp_path: Path, shard_size: str) -> None:
    base = llama()
    tuned = tuned_copy(base)
    base.save_pretrained(tmp_path / "base", max_shard_size=shard_size)
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size=shard_size)
    files = list((tmp_path / "tuned").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "10KB")
    seen = list(updates(FULL, tmp_path / "tuned", SavedWeights(tmp_path / "base"), base, CPU))
    assert [u.layer for u in seen] == sorted([*range(LAYERS)] * 7)
    assert {u.module for u in seen if u.layer == 1} == {
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    }
    before, after = base.state_dict(), tuned.state_dict()
    for update in seen:
        delta = (after[update.name] - before[update.name]).double()
        np.testing.assert_allclose(update.delta, delta, atol=1e-7)
        np.testing.assert_allclose(
            update_spectrum(update).values_K, np.linalg.svd(delta, compute_uv=False), rtol=1e-5
        )
        np.testing.assert_allclose(update.tuned(), after[update.name], atol=1e-6)


def randomise(model: Any) -> None:
    """So that B is not zero and DoRA's magnitudes are not the base's norms."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in name else noise / 5)


def save_adapter(base: Any, lora: LoraConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Saves a random adapter; returns the merged model's weights, as PEFT merges them."""
    adapted = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules="all-linear",
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            task_type="CAUSAL_LM",
        ),
    )
    randomise(adapted)
    adapted.save_pretrained(folder)
    merged: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return merged


@pytest.mark.parametrize("dora", [False, True], ids=["", "dora"])
@pytest.mark.parametrize("rslora", [False, True], ids=["", "rslora"])
def test_lora_update_is_what_peft_merges(tmp_path: Path, rslora: bool, dora: bool) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    lora = LoraConfig(rank=4, alpha=6.0, rslora=rslora, dora=dora)
    after = save_adapter(base, lora, tmp_path / "adapter")
    trial, saved = trial_config(lora=lora), SavedWeights(tmp_path / "base")
    seen = list(updates(trial, tmp_path / "adapter", saved, base, CPU))
    assert len(seen) == 7 * LAYERS
    for update in seen:
        delta = (after[update.name] - before[update.name]).double()
        spectrum = update_spectrum(update)
        expected = np.linalg.svd(delta, compute_uv=False)[: len(spectrum.values_K)]
        assert update.rank_limit == (min(delta.shape) if dora else 4)
        assert len(spectrum.values_K) == update.rank_limit
        np.testing.assert_allclose(spectrum.values_K, expected, rtol=1e-4 if dora else 1e-5)
        np.testing.assert_allclose(update.tuned(), after[update.name], atol=1e-5)


def test_rounding_the_base_to_the_dtype_of_training_is_no_update(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.bfloat16().save_pretrained(tmp_path / "tuned")
    weights = base_weights(ModelConfig(name=str(tmp_path / "base"), dtype="bfloat16"))
    seen = list(updates(FULL, tmp_path / "tuned", weights, base, CPU))
    assert len(seen) == 7 * LAYERS
    assert all(len(update_spectrum(update).values_K) == 0 for update in seen)


SHAPE = tiny_decoder.SHAPE | {"vocab_size": 60}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}


def network(kind: str) -> Any:
    """A small model whose files have other names, or other tensors, than its memory."""
    parts = {"text_config": SHAPE, "vision_config": VISION} if kind == "gemma3" else SHAPE | EXPERTS
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **parts))


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("qwen3_moe", ATTENTION | {"mlp.gate"}),
        ("gemma3", ATTENTION | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}),
        ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ],
)
def test_the_decoder_s_matrices_are_read_whatever_their_names_and_shapes(
    tmp_path: Path, kind: str, modules: set[str]
) -> None:
    """Without stacked experts, which PEFT adapts too, and a vision tower; and GPT-2's turned."""
    base = network(kind)
    base.save_pretrained(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    if kind == "gpt2":  # on the hub `h.0`, in memory `transformer.h.0`
        on_hub = {n.removeprefix("transformer."): t for n, t in before.items() if n[0] == "t"}
        save_file(on_hub, tmp_path / "base" / "model.safetensors")
    lora = LoraConfig(rank=2, alpha=4)
    after = save_adapter(base, lora, tmp_path / "adapter")
    base.save_pretrained(tmp_path / "tuned")  # merged
    for trial, folder in ((trial_config(lora=lora), "adapter"), (FULL, "tuned")):
        weights = SavedWeights(tmp_path / "base")
        seen = list(updates(trial, tmp_path / folder, weights, network(kind), CPU))
        assert {update.module for update in seen} == modules
        assert len(seen) == 2 * len(modules)
        for update in seen:
            W0, W = (
                w[update.name].T if kind == "gpt2" else w[update.name] for w in (before, after)
            )
            np.testing.assert_allclose(update.base_OI, W0)
            np.testing.assert_allclose(update.tuned(), W, atol=1e-6)


def test_a_trial_of_another_model_is_not_inspected(tmp_path: Path) -> None:
    base = llama()
    tuned_copy(base).save_pretrained(tmp_path / "tuned")
    (tmp_path / "base").mkdir()
    save_file({"other.0.weight": torch.ones(2, 2)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(CannotInspect, match="the base has none of the matrices"):
        list(updates(FULL, tmp_path / "tuned", SavedWeights(tmp_path / "base"), base, CPU))


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        base.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    base.save_pretrained(tmp_path / "tuned")
    with pytest.raises(CannotInspect, match=r"layers\.1\.mlp\.up_proj.*not finite"):
        list(updates(FULL, tmp_path / "tuned", SavedWeights(tmp_path / "base"), base, CPU))


def test_a_base_without_safetensors_is_loaded_whole(tmp_path: Path) -> None:
    base = llama()
    torch.save(base.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(base.config.to_dict()))
    weights = base_weights(ModelConfig(name=str(tmp_path), dtype="float32"))
    assert not isinstance(weights, SavedWeights)
    name = "model.layers.2.mlp.up_proj.weight"
    torch.testing.assert_close(weights[name], base.state_dict()[name])
