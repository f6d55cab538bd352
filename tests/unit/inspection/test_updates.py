"""Weight updates from files, against what is in memory and what PEFT merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny_decoder
import torch
from builders import adapter, trial_config
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.config import TrialConfig
from trainables.errors import CannotInspect
from trainables.inspection.saved_weights import SavedWeights
from trainables.inspection.spectra import update_spectrum
from trainables.inspection.updates import MatrixUpdate, updates
from trainables.methods import Method

FULL = trial_config(method="full")
SHAPE = tiny_decoder.SHAPE | {"vocab_size": 60}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
OTHERS = {"gemma3": {"text_config": SHAPE, "vision_config": VISION}}
OTHERS |= {"qwen3_moe": SHAPE | {"num_experts": 4, "num_experts_per_tok": 2}}
MLP = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}


def network(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **OTHERS.get(kind, SHAPE))
    return AutoModelForCausalLM.from_config(config)


def copied_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def tune(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)


def save_adapter(base: Any, method: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Saves a random adapter; returns the merged model's weights, as PEFT merges them."""
    adapted = peft.get_peft_model(base, method.peft_config(10))
    with torch.no_grad():  # so that B is not zero and DoRA's magnitudes are not the base's norms
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.rand(parameter.shape)
                parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in name else noise / 5)
    adapted.save_pretrained(folder)
    merged: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return merged


def read(trial: TrialConfig, folder: Path, hollow: Any) -> list[MatrixUpdate]:
    """The updates of weights in `folder`, whose base is beside it."""
    base = SavedWeights(folder.parent / "base")
    return list(updates(trial, folder, base, hollow, torch.device("cpu")))


def test_a_full_update_is_the_difference_in_memory(tmp_path: Path) -> None:
    """Read from several files, for which there is an index."""
    base = network()
    before = copied_weights(base)
    base.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    tune(base)
    after = copied_weights(base)
    base.save_pretrained(tmp_path / "tuned", max_shard_size="10KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    seen = read(FULL, tmp_path / "tuned", base)
    assert [u.layer for u in seen] == [0] * 7 + [1] * 7
    assert {u.module for u in seen if u.layer == 1} == ATTENTION | MLP
    for update in seen:
        delta = (after[update.name] - before[update.name]).double()
        np.testing.assert_allclose(update.delta, delta, atol=1e-7)
        expected = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(update_spectrum(update).values_K, expected, rtol=1e-4)
        np.testing.assert_allclose(update.tuned(), after[update.name], atol=1e-6)


@pytest.mark.parametrize("dora", [False, True], ids=["", "dora"])
@pytest.mark.parametrize("rslora", [False, True], ids=["", "rslora"])
def test_a_lora_update_is_what_peft_merges(tmp_path: Path, rslora: bool, dora: bool) -> None:
    base = network()
    base.save_pretrained(tmp_path / "base")
    before = copied_weights(base)
    lora = adapter(rank=4, alpha=6.0, rslora=rslora, dora=dora)
    after = save_adapter(base, lora, tmp_path / "adapter")
    seen = read(trial_config(method=lora), tmp_path / "adapter", base)
    assert len(seen) == 14
    for update in seen:
        delta = (after[update.name] - before[update.name]).double()
        spectrum = update_spectrum(update)
        assert len(spectrum.values_K) == update.rank_limit == (min(delta.shape) if dora else 4)
        expected = np.linalg.svd(delta, compute_uv=False)[: update.rank_limit]
        np.testing.assert_allclose(spectrum.values_K, expected, rtol=1e-3 if dora else 1e-5)
        np.testing.assert_allclose(update.tuned(), after[update.name], atol=1e-5)


def test_an_update_without_a_formula_is_read_by_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora = network(), adapter(rank=4)
    base.save_pretrained(tmp_path / "base")
    save_adapter(base, lora, tmp_path / "adapter")
    trial = trial_config(method=lora, model={"name": str(tmp_path / "base"), "dtype": "float32"})
    by_formula = read(trial, tmp_path / "adapter", network())
    monkeypatch.setattr(type(lora), "stored_update", Method.stored_update)
    by_merging = read(trial, tmp_path / "adapter", network())
    for one, other in zip(by_formula, by_merging, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose(one.tuned(), other.tuned(), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("qwen3_moe", ATTENTION | {"mlp.gate"}),
        ("gemma3", ATTENTION | MLP),
        ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ],
)
def test_the_decoder_s_matrices_are_read_whatever_their_names_and_shapes(
    tmp_path: Path, kind: str, modules: set[str]
) -> None:
    """Without stacked experts, which PEFT adapts too, and a vision tower; and GPT-2's turned."""
    base = network(kind)
    base.save_pretrained(tmp_path / "base")
    before = copied_weights(base)
    if kind == "gpt2":  # on the hub `h.0`, in memory `transformer.h.0`
        on_hub = {n.removeprefix("transformer."): t for n, t in before.items() if n[0] == "t"}
        save_file(on_hub, tmp_path / "base" / "model.safetensors")
    lora = adapter(rank=2, alpha=4)
    after = save_adapter(base, lora, tmp_path / "adapter")
    base.save_pretrained(tmp_path / "tuned")  # merged
    for trial, folder in ((trial_config(method=lora), "adapter"), (FULL, "tuned")):
        seen = read(trial, tmp_path / folder, network(kind))
        assert {update.module for update in seen} == modules
        assert len(seen) == 2 * len(modules)
        for update in seen:
            W0, W = (each[update.name] for each in (before, after))
            if kind == "gpt2":
                W0, W = W0.T, W.T
            np.testing.assert_allclose(update.base_OI, W0)
            np.testing.assert_allclose(update.tuned(), W, atol=1e-6)


def test_weights_of_another_model_or_not_finite_are_not_inspected(tmp_path: Path) -> None:
    base = network()
    base.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        base.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    base.save_pretrained(tmp_path / "tuned")
    with pytest.raises(CannotInspect, match=r"layers\.1\.mlp\.up_proj.*not finite"):
        read(FULL, tmp_path / "tuned", base)
    save_file({"other.0.weight": torch.ones(2, 2)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(CannotInspect, match="none of the matrices"):
        read(FULL, tmp_path / "tuned", base)
