"""LoRA-Dash finds planted directions, and learns as its formula written out does."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from random_token_training import losses

from trainables.config import ModelConfig
from trainables.methods.loradash import LoraDash
from trainables.models.adapter import Adapted
from trainables.models.loading import load_model

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
METHOD = LoraDash(rank=2, alpha=4.0, directions=3, start_step=3)
STEPS = 9
CLIP = 0.5


@pytest.fixture(scope="module")
def base() -> Any:
    return load_model(MODEL).eval()


def lora_layers(model: Any) -> dict[str, Any]:
    named = model.named_modules()
    return {name: each for name, each in named if "default" in getattr(each, "lora_A", {})}


def factors(layer: Any) -> tuple[Any, Any]:
    return layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data


def test_planted_directions_are_found_and_the_update_stays_low_rank(base: Any) -> None:
    """Equal parts of the planted u_i v_i^T, the largest of an update whose rest is larger."""
    method = LoraDash(rank=4, alpha=8.0, directions=3, start_step=1, target_modules=("q_proj",))
    adapted = Adapted(base, method, STEPS)
    layers, planted = list(lora_layers(adapted.model).values()), [5, 40, 90]
    for layer in layers:
        left_OK, _, right_KI = torch.linalg.svd(layer.base_layer.weight.data)
        B_OR, A_RI = factors(layer)
        B_OR[:, :3], A_RI[:3] = left_OK[:, planted], right_KI[planted]
        B_OR[:, 3], A_RI[3] = 9 * left_OK[:, 7], right_KI[8]  # of no direction: i is not j
    method.before_step(adapted.model)
    method.after_step(adapted.model, 1)
    for layer in layers:
        left_OK, _, right_KI = torch.linalg.svd(layer.base_layer.weight.data)
        B_OR, A_RI = factors(layer)
        overlaps = ((left_OK[:, planted].T @ layer.dash_left).abs(), A_RI[4:] @ right_KI.T)
        assert overlaps[0].sum(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-4)
        assert overlaps[1][:, planted].abs().sum(dim=0).tolist() == pytest.approx([1] * 3, abs=1e-4)
        assert not B_OR[:, 4:].any()  # d = 0 changes nothing
        layer.dash.data.copy_(torch.tensor([1.0, -2.0, 3.0]))
        for values in (B_OR[:, :4], A_RI[:4]):
            values.normal_(generator=torch.Generator().manual_seed(0))
    method.before_step(adapted.model)
    method.after_step(adapted.model, 2)
    for layer in layers:
        B_OR, A_RI = factors(layer)
        assert torch.linalg.matrix_rank(B_OR @ A_RI, rtol=1e-4) == 7
        own_DD = layer.dash_left.T @ (method.scaling * B_OR[:, 4:] @ A_RI[4:]) @ A_RI[4:].T
        torch.testing.assert_close(own_DD, layer.dash.data.diag(), atol=1e-5, rtol=0)
    assert adapted.remove()


def test_it_learns_as_its_formula_written_out_does(base: Any) -> None:
    adapted = Adapted(base, METHOD, STEPS)
    layers = lora_layers(adapted.model)
    drawn = {name: factors(layer)[1][: METHOD.rank].clone() for name, layer in layers.items()}
    ours = losses(adapted.model, STEPS, CLIP, METHOD)
    largest = max(float(layer.dash.data.abs().max()) for layer in layers.values())
    assert adapted.remove()
    written_out = WrittenOut(copy.deepcopy(base), drawn)
    theirs = losses(written_out.model, STEPS, CLIP, written_out)
    assert ours == pytest.approx(theirs, rel=2e-5)
    assert ours[-1] < 0.95 * ours[0]
    assert largest > 5e-3  # so that the directions are seen in the loss


class WrittenOut:
    """LoRA, and beside it U_D diag(d) V_D^T with d in autograd's own graph."""

    def __init__(self, base: Any, drawn: dict[str, torch.Tensor]) -> None:
        config = peft.LoraConfig(
            r=METHOD.rank, lora_alpha=METHOD.alpha, target_modules="all-linear"
        )
        self.model = peft.get_peft_model(base, config)
        for name, layer in lora_layers(self.model).items():
            layer.lora_A["default"].weight.data.copy_(drawn[name])
            layer.d = torch.nn.Parameter(torch.zeros(METHOD.directions))

    def before_step(self, model: Any) -> None:
        """Nothing: before the directions are chosen d is in no graph."""

    def after_step(self, model: Any, step: int) -> None:
        if step != METHOD.start_step:
            return
        for layer in lora_layers(model).values():
            B_OR, A_RI = factors(layer)
            U, S, Vh = torch.linalg.svd(layer.base_layer.weight.data, full_matrices=False)
            scores = (U.T @ (METHOD.scaling * B_OR @ A_RI) @ Vh.T).diagonal().abs() / (S + 1e-6)
            best = scores.topk(METHOD.directions).indices

            def add(
                _: Any, inputs: Any, output: Any, left=U[:, best], right=Vh[best], d=layer.d
            ) -> Any:
                return output + (inputs[0] @ right.T * d) @ left.T

            layer.register_forward_hook(add)
