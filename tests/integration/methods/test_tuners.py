"""Adapters that PEFT does not have compute their formulas, and plain PEFT loads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import faults
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.config import BaseRequirements, ModelConfig
from trainables.methods.bottleneck import Bottleneck
from trainables.methods.difflora import DiffLora
from trainables.models.adaptable import check_adaptable
from trainables.models.adapter import Adapted
from trainables.models.loading import load_model

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
IDS_BS = torch.randint(3, 309, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base() -> Any:
    return load_model(MODEL).eval()


def disturb(model: Any) -> None:
    """Have all that is trained be something other than at the start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.1 * noise)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS_BS).logits


def test_a_bottleneck_is_added_to_what_a_layer_gives(base: Any) -> None:
    adapted = Adapted(base, Bottleneck(size=3, activation="gelu"), steps=1)
    disturb(adapted.model)
    layer = base.model.layers[1].mlp.down_proj
    x_TI = torch.randn(5, 352)
    h_TO = layer.base_layer(x_TI)
    down_KO = layer.bottleneck_down["default"].weight
    up_OK = layer.bottleneck_up["default"].weight
    assert (down_KO.shape, up_OK.shape) == ((3, 128), (128, 3))
    expected = h_TO + torch.nn.functional.gelu(h_TO @ down_KO.T) @ up_OK.T
    torch.testing.assert_close(layer(x_TI), expected)


GROUPED = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "head_dim": 8,
}  # fmt: skip


def family(name: str, **settings: Any) -> Any:
    """A small model of random weights with two query heads a key head."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **GROUPED, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


def as_dense(layer: Any, x_BTH: torch.Tensor, cos: Any, sin: Any) -> torch.Tensor:
    """Differential attention by its formula, head by head, with causal maps of full size."""
    attention, lam0 = layer.base_layer, layer.lambda_0
    size, groups = attention.head_dim, attention.num_key_value_groups
    length = x_BTH.shape[1]
    later_TT = torch.ones(length, length).triu(1).bool()

    def projected(name: str, weight: torch.Tensor | None) -> torch.Tensor:
        A = getattr(layer, f"difflora_A_{name}")["default"].weight
        B = getattr(layer, f"difflora_B_{name}")["default"].weight
        dense = layer.configs["default"].alpha / layer.configs["default"].rank * B @ A
        return x_BTH @ (dense if weight is None else weight + dense).T

    def rotated(states: torch.Tensor) -> torch.Tensor:
        half = size // 2
        turned = torch.cat([-states[..., half:], states[..., :half]], -1)
        return states * cos + turned * sin

    weights = {"q1": attention.q_proj.weight, "k1": attention.k_proj.weight}
    states = {name: projected(name, weights.get(name)) for name in ("q1", "k1", "q2", "k2")}
    values = x_BTH @ attention.v_proj.weight.T
    lq1, lk1, lq2, lk2 = layer.difflora_lambda["default"]
    lam = torch.exp(lq1 @ lk1) - torch.exp(lq2 @ lk2) + lam0
    heads = []
    for head in range(states["q1"].shape[-1] // size):
        of_q = slice(head * size, (head + 1) * size)
        of_k = slice(head // groups * size, (head // groups + 1) * size)
        first, second = (
            (rotated(states[f"q{n}"][..., of_q]) @ rotated(states[f"k{n}"][..., of_k]).mT)
            .div(size**0.5)
            .masked_fill(later_TT, -torch.inf)
            .softmax(-1)
            for n in (1, 2)
        )
        output = (first - lam * second) @ values[..., of_k]
        root = (output.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        heads.append(output / root * layer.difflora_norm["default"] * (1 - lam0))
    return torch.cat(heads, -1) @ attention.o_proj.weight.T


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_difflora_subtracts_a_second_attention_map(implementation: str) -> None:
    model = family("llama", attn_implementation=implementation)
    adapted = Adapted(model, DiffLora(rank=3, alpha=6.0), steps=1)
    disturb(adapted.model)
    adapted.model.eval()
    layer = model.model.layers[1].self_attn
    assert layer.lambda_0 == pytest.approx(0.8 - 0.6 * 2.718281828**-0.3)
    x_BTH = torch.randn(2, 6, 32)
    cos, sin = model.model.rotary_emb(x_BTH, torch.arange(6)[None])
    later = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    found, weights = layer(x_BTH, position_embeddings=(cos, sin), attention_mask=later)
    torch.testing.assert_close(found, as_dense(layer, x_BTH, cos, sin), atol=1e-5, rtol=1e-4)
    if implementation == "eager":
        assert (weights < 0).any()
        torch.testing.assert_close(
            weights.sum(-1), (1 - layer.lam("default")).expand(weights.shape[:-1])
        )


@pytest.mark.parametrize(
    ("name", "settings"),
    [("llama", {}), ("mistral", {"sliding_window": 4}), ("qwen2", {})],
)
def test_difflora_without_its_second_map_and_norm_is_the_base(
    name: str, settings: dict[str, Any]
) -> None:
    model = family(name, **settings)
    expected = logits(model)
    adapted = Adapted(model, DiffLora(rank=3, norm=False), steps=1)
    adapted.model.eval()
    assert (logits(adapted.model) - expected).abs().max() > 1e-3
    for layer in (block.self_attn for block in model.model.layers):
        layer.lambda_0 = 0.0
        layer.difflora_lambda["default"].data.zero_()
    torch.testing.assert_close(logits(adapted.model), expected, atol=1e-5, rtol=0)
    assert adapted.remove()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("llama", {}), ("mistral", {"sliding_window": 4}), ("qwen2", {})],
)
def test_difflora_generates_with_a_cache_what_it_does_without(
    name: str, settings: dict[str, Any]
) -> None:
    model = family(name, **settings)
    adapted = Adapted(model, DiffLora(rank=3), steps=1)
    disturb(adapted.model)
    adapted.model.eval()
    prompts = {"input_ids": IDS_BS[:, :6], "attention_mask": torch.ones(2, 6).long()}
    prompts["attention_mask"][0, :3] = 0  # padded on the left
    cached, anew = (
        adapted.model.generate(**prompts, max_new_tokens=6, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert cached.shape[1] > 7
    assert torch.equal(cached, anew)


def test_both_maps_of_difflora_learn_from_the_first_step_on(base: Any) -> None:
    adapted = Adapted(base, DiffLora(rank=3), steps=1)
    adapted.model(input_ids=IDS_BS, labels=IDS_BS).loss.backward()
    still = [
        name
        for name, parameter in adapted.model.named_parameters()
        if parameter.requires_grad and not parameter.grad.any()
    ]
    assert still
    assert all("A_q1" in name or "A_k1" in name for name in still)  # their B are 0


@pytest.mark.parametrize(("name", "fact"), [("qwen3", "Qwen3Attention"), ("gpt_neox", "self_attn")])
def test_difflora_is_refused_on_other_attention(name: str, fact: str) -> None:
    model = family(name)
    before = [each for each, _ in model.named_modules()]
    needs = BaseRequirements(adapters=(("wide", DiffLora()),))
    (fault,) = faults(check_adaptable, model, needs)
    assert fault.field == "search.wide"
    assert fact in fault.rule
    assert before == [each for each, _ in model.named_modules()]


LOAD = """
import sys, peft, torch, trainables.tuners
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
known = load_file(sys.argv[2] + "/known.safetensors")
torch.testing.assert_close(model(input_ids=known["ids"]).logits, known["logits"])
"""


@pytest.mark.parametrize(
    "method", [Bottleneck(size=3), DiffLora(rank=3)], ids=lambda method: method.name
)
def test_another_process_loads_it_with_plain_peft(base: Any, tmp_path: Path, method: Any) -> None:
    adapted = Adapted(base, method, steps=1)
    adapted.model.eval()
    disturb(adapted.model)
    adapted.model.save_pretrained(tmp_path)
    known = {"ids": IDS_BS, "logits": logits(adapted.model)}
    save_file(known, tmp_path / "known.safetensors")
    files = (str(Path(base.name_or_path)), str(tmp_path))
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True, timeout=120)
