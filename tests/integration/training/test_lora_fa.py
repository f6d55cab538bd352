"""LoRA-FA's gradients are those of PEFT's own optimizer."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, lorafa

from trainables.config import ModelConfig
from trainables.methods.lora_fa import LoraFa
from trainables.models.loading import load_model

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
IDS_BS = torch.arange(3, 35).view(2, 16)


def test_its_gradients_are_those_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)  # it would round them
    method = LoraFa(rank=4, alpha=16)
    model = peft.get_peft_model(load_model(MODEL), method.peft_config(1))
    optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=16, lr=1e-3)
    model(input_ids=IDS_BS, labels=IDS_BS).loss.backward()
    raw = {name: p.grad.clone() for name, p in model.named_parameters() if ".lora_B." in name}
    optimizer.step()  # the first average of gradients is a tenth of them
    method.before_step(model)
    found = {name: p.grad for name, p in model.named_parameters() if ".lora_B." in name}
    for name, gradient_OR in found.items():
        theirs_OR = optimizer.state[name.replace("_B.default.weight", "")]["exp_avg_B"] / 0.1
        torch.testing.assert_close(gradient_OR, theirs_OR, rtol=1e-4, atol=1e-7)
        assert not torch.equal(gradient_OR, raw[name])
