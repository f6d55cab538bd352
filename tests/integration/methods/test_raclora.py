"""A chain of LoRAs learns as LoRAs do that are merged one after the other."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from random_token_training import adamw, backward

from trainables.config import ModelConfig
from trainables.methods.raclora import RacLora
from trainables.models.adapter import Adapted
from trainables.models.loading import load_model
from trainables.training import optimizer_state

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
CLIP = 0.1
SQUARE = ("q_proj", "o_proj")


@pytest.fixture(scope="module")
def base() -> Any:
    return load_model(MODEL).eval()


def test_each_link_is_a_fresh_lora_on_the_merged_ones_before_it(base: Any) -> None:
    method, steps = RacLora(rank=2, alpha=4.0, links=3), 12
    adapted = Adapted(base, method, steps)
    drawn = drawn_factors(adapted.model)
    optimizer, ours = adamw(adapted.model), []
    for step in range(1, steps + 1):
        ours.append(backward(adapted.model, CLIP))
        method.before_step(adapted.model)
        optimizer.step()
        method.after_step(adapted.model, step)
        if method.restarts_optimizer(adapted.model, step):
            optimizer_state.restart(optimizer)
        optimizer.zero_grad()
    assert adapted.remove()

    theirs, merged = [], copy.deepcopy(base)
    for link in range(method.links):
        config = peft.LoraConfig(r=2, lora_alpha=4.0, target_modules="all-linear")
        model = peft.get_peft_model(merged, config)
        for name, A_RI in drawn_factors(model).items():
            A_RI.data.copy_(drawn[name][2 * link : 2 * link + 2])
            A_RI.requires_grad_(False)
        optimizer = adamw(model)
        for _ in range(steps // method.links):
            theirs.append(backward(model, CLIP))
            optimizer.step()
            optimizer.zero_grad()
        merged = model.merge_and_unload()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < 0.95 * ours[0]


def drawn_factors(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name}


def test_solved_links_contract_a_quadratic_error_where_one_lora_stalls(base: Any) -> None:
    """On 1/2 |s B A - T|^2 with T orthogonal, of which rank R leaves a share 1 - R / I."""
    torch.manual_seed(0)
    method = RacLora(rank=32, alpha=16.0, links=6, target_modules=SQUARE)
    adapted = Adapted(base, method, method.links)
    layers = [each for each in adapted.model.modules() if "default" in getattr(each, "lora_A", {})]
    factors = [[getattr(la, f)["default"].weight for f in ("lora_A", "lora_B")] for la in layers]
    (size,) = {len(B_OR) for _, B_OR in factors}
    targets = [torch.nn.init.orthogonal_(torch.empty(size, size)) for _ in layers]
    left = 1 - method.rank / size

    def error(A_RI: Any, B_OR: Any, target_OI: Any) -> Any:
        return (method.scaling * B_OR @ A_RI - target_OI).square().sum() / 2

    for step in range(1, method.links + 1):
        for (A_RI, B_OR), target_OI in zip(factors, targets, strict=True):
            error(A_RI, B_OR, target_OI).backward()
        method.before_step(adapted.model)
        for A_RI, B_OR in factors:  # Newton's step, of the link alone that has a gradient
            square_RR = (method.scaling * A_RI.detach().double()) @ A_RI.detach().double().T
            trained = slice((step - 1) * method.rank, step * method.rank)
            inverse_RR = torch.linalg.inv(square_RR[trained, trained] * method.scaling)
            others = B_OR.grad.clone()
            others[:, trained] = 0
            assert not others.any()
            B_OR.data[:, trained] -= (B_OR.grad[:, trained].double() @ inverse_RR).float()
            B_OR.grad = None
        method.after_step(adapted.model, step)
        errors = [float(error(*ab, t).detach()) for ab, t in zip(factors, targets, strict=True)]
        share = torch.tensor(errors).mean().item() / (size / 2)
        assert share == pytest.approx(left**step, rel=0.05)
    assert share < left / 2
    assert adapted.remove()


def test_links_share_the_steps_and_the_last_one_ends_with_them(base: Any) -> None:
    method = RacLora(rank=2, alpha=4.0, links=3)
    adapted = Adapted(base, method, 10)
    restarts = [s for s in range(1, 11) if method.restarts_optimizer(adapted.model, s)]
    assert restarts == [4, 7]
    assert adapted.remove()
