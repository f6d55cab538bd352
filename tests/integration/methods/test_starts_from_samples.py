"""Starts that are computed from samples are those of PEFT, on a base that stays as it is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from peft.tuners.lora import initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from random_token_training import losses

from trainables.config import ModelConfig
from trainables.methods.corda import CorDa
from trainables.methods.eva import Eva
from trainables.methods.loraga import LoraGa
from trainables.models import adapter_start
from trainables.models.adapter import Adapted
from trainables.models.loading import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALPHA = 8.0
IDS_NS = torch.randint(3, 309, (12, 24), generator=torch.Generator().manual_seed(1)).tolist()
SAMPLES = [{"input_ids": ids, "labels": [-100] * 8 + ids[8:]} for ids in IDS_NS]


@pytest.fixture(scope="module")
def base() -> Any:
    return load_model(MODEL).eval()


def config(rank: int, **start: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=LINEAR, **start)


def batches(model: Any) -> Callable[[], None]:
    """One sample at a time, with the gradients of its mean loss if they are enabled."""

    def run() -> None:
        for sample in SAMPLES:
            ids, labels = (torch.tensor([sample[name]]) for name in ("input_ids", "labels"))
            loss = model(input_ids=ids, labels=labels).loss
            if torch.is_grad_enabled():
                loss.backward()

    return run


def factors(model: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """B (O, R) and A (R, I) of each adapted layer."""
    return {
        name: (
            layer.lora_B["default"].weight.detach().clone(),
            layer.lora_A["default"].weight.detach().clone(),
        )
        for name, layer in model.named_modules()
        if "default" in getattr(layer, "lora_A", {})
    }


def test_corda_starts_and_learns_as_peft_s_own_form_does(base: Any) -> None:
    theirs, method = copy.deepcopy(base), CorDa(rank=4, alpha=ALPHA)
    settings = config(4, init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm"))
    preprocess_corda(theirs, settings, batches(theirs))
    expected = losses(peft.get_peft_model(theirs, settings), steps=6, clip=1.0)
    adapted = Adapted(base, method, 6, SAMPLES)
    found = losses(adapted.model, steps=6, clip=1.0, hooks=method)
    assert adapted.remove()
    assert found == pytest.approx(expected, rel=1e-5)


def test_corda_starts_in_what_general_text_hardly_sees(base: Any) -> None:
    """Against PiSSA's, which takes the largest directions of the weights."""
    adapted = Adapted(base, CorDa(rank=4, alpha=ALPHA), 6, SAMPLES)
    layers = factors(adapted.model)
    name = "base_model.model.model.layers.1.mlp.up_proj"
    B_OR, A_RI = layers[name][0][:, :4], layers[name][1][:4]
    weight_OI = adapted.model.get_submodule(name).get_base_layer().weight.detach()
    smallest_OI = ALPHA / 4 * B_OR @ A_RI
    seen = []
    hook = adapted.model.get_submodule(name).register_forward_hook(
        lambda _, arguments, output: seen.append(arguments[0][0])
    )
    with torch.no_grad():
        batches(adapted.model)()
    hook.remove()
    inputs_TI = torch.cat(seen)
    assert (inputs_TI @ smallest_OI.T).norm() < 0.01 * (inputs_TI @ weight_OI.T).norm()
    adapted.remove()


def test_lora_ga_starts_as_peft_s_own_form_does(base: Any) -> None:
    """At a rank whose sketch is the whole gradient; two singular pairs have signs of their own."""
    theirs, rank = copy.deepcopy(base), 32
    settings = config(rank, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    preprocess_loraga(theirs, settings, batches(theirs))
    expected = factors(peft.get_peft_model(theirs, settings))
    adapted = Adapted(base, LoraGa(rank=rank, alpha=ALPHA), 6, SAMPLES)
    found = factors(adapted.model)
    assert found.keys() == expected.keys()
    for name, (B_OR, A_RI) in found.items():
        for own, peft_s in ((B_OR[:, :rank], expected[name][0]), (A_RI[:rank], expected[name][1])):
            error = (own.abs() - peft_s.abs()).norm() / peft_s.norm()
            assert error < 0.02, name
    assert adapted.remove()


def test_lora_ga_s_first_step_is_along_the_gradient(base: Any) -> None:
    """Of the rank-R changes by A alone and B alone, it has the largest share of G."""
    adapted = Adapted(base, LoraGa(rank=4, alpha=ALPHA), 6, SAMPLES)
    for B_OR, A_RI in factors(adapted.model).values():
        B, A = B_OR[:, :4], A_RI[:4]
        torch.testing.assert_close(A @ A.T, torch.eye(4), atol=1e-4, rtol=0)
        angles = torch.nn.functional.normalize(B, dim=0)
        torch.testing.assert_close(angles.T @ angles, torch.eye(4), atol=1e-3, rtol=0)
    adapted.remove()


def test_eva_starts_in_the_components_that_peft_finds(base: Any) -> None:
    theirs = copy.deepcopy(base)
    settings = config(4, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    tuned = peft.get_peft_model(theirs, settings)
    ids, labels = (torch.tensor([s[name] for s in SAMPLES]) for name in ("input_ids", "labels"))
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    initialize_lora_eva_weights(tuned, [batch], show_progress_bar=False)
    expected = factors(tuned)
    adapted = Adapted(base, Eva(rank=4, alpha=ALPHA), 6, SAMPLES)
    for name, (B_OR, A_RI) in factors(adapted.model).items():
        assert not B_OR.any()
        cosines = torch.linalg.svdvals(A_RI @ expected[name][1].T)
        assert cosines.min() > 0.99, name
    assert adapted.remove()


@pytest.mark.parametrize("kind", [CorDa, LoraGa, Eva])
def test_the_start_does_not_depend_on_how_many_layers_are_observed_at_once(
    base: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    for most in (2**31, 1):
        monkeypatch.setattr(adapter_start, "_MOST_BYTES", most)
        torch.manual_seed(0)
        adapted = Adapted(base, kind(rank=4, alpha=ALPHA), 6, SAMPLES)
        starts.append(factors(adapted.model))
        assert adapted.remove()
    for name, together in starts[0].items():
        for one, other in zip(together, starts[1][name], strict=True):
            torch.testing.assert_close(one, other)
