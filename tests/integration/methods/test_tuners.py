"""Adapters that PEFT does not have compute their formulas, and plain PEFT loads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trainables.config import ModelConfig
from trainables.methods.bottleneck import Bottleneck
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


LOAD = """
import sys, peft, torch, trainables.tuners
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
known = load_file(sys.argv[2] + "/known.safetensors")
torch.testing.assert_close(model(input_ids=known["ids"]).logits, known["logits"])
"""


@pytest.mark.parametrize("method", [Bottleneck(size=3)], ids=lambda method: method.name)
def test_another_process_loads_it_with_plain_peft(base: Any, tmp_path: Path, method: Any) -> None:
    adapted = Adapted(base, method, steps=1)
    adapted.model.eval()
    disturb(adapted.model)
    adapted.model.save_pretrained(tmp_path)
    known = {"ids": IDS_BS, "logits": logits(adapted.model)}
    save_file(known, tmp_path / "known.safetensors")
    files = (str(Path(base.name_or_path)), str(tmp_path))
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True, timeout=120)
