"""Bases that trials cannot share, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.packing.packable import NotPackable, check_packable

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = [f"model.layers.{layer}.mlp.up_proj" for layer in range(4)]


def use_weight_alone(base: Any) -> None:
    """As Mamba's kernels do in training."""
    mlp = base.model.layers[0].mlp
    forward, up = mlp.forward, mlp.up_proj
    mlp.forward = lambda x: x * up.weight.mean() if mlp.training else forward(x)


class OtherLinear(torch.nn.Linear):
    pass


@pytest.mark.parametrize(
    ("spoil", "fact"),
    [
        (lambda base: setattr(base.model.layers[0].self_attn, "attention_dropout", 0.1), "random"),
        (lambda base: setattr(base.model.layers[0].mlp, "up_proj", OtherLinear(8, 8)), "up_proj"),
        (use_weight_alone, "whole sequences"),
        (lambda base: base.model.layers[2].mlp.up_proj.double(), "2.mlp.up_proj.*float64"),
        (lambda base: base.set_output_embeddings(base.model.layers[0].mlp.up_proj), "output head"),
    ],
)
def test_a_base_that_cannot_be_shared_says_why(
    base_model: Any, spoil: Callable[[Any], None], fact: str
) -> None:
    check_packable(base_model, NAMES, longest=32)  # sound as it is
    spoil(base_model)
    with pytest.raises(NotPackable, match=fact):
        check_packable(base_model, NAMES, longest=32)


def test_a_sample_that_would_change_the_positions_of_others_is_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    sizes = {"vocab_size": 32, "max_position_embeddings": 16}
    config = AutoConfig.for_model("llama", **SHAPE, **sizes, rope_parameters=rope)
    base = AutoModelForCausalLM.from_config(config).eval()
    names = [name for name, _ in base.named_modules() if name.endswith("down_proj")]
    check_packable(base, names, longest=16)
    with pytest.raises(NotPackable, match=r"above 16 tokens .*; data.max_length is 17"):
        check_packable(base, names, longest=17)
