"""Adapters with a start of their own learn, step by step, as PEFT's own forms of them do."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch

from trainables.config import ModelConfig
from trainables.methods.olora import OLora
from trainables.methods.pissa import Pissa
from trainables.models.adapter import Adapted
from trainables.models.loading import load_model

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
RANK, ALPHA, STEPS = 4, 8.0, 6  # before rounding grows
IDS_BS = torch.randint(3, 309, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base() -> Any:
    return load_model(MODEL).eval()


def losses(model: Any, method: Any = None) -> list[float]:
    """Of AdamW with weight decay and clipping, on random tokens."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.1)
    found = []
    for step in range(1, STEPS + 1):
        logits_BSV = model(input_ids=IDS_BS).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), IDS_BS[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if method:
            method.before_step(model)
        optimizer.step()
        if method:
            method.after_step(model, step)
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("kind", [Pissa, OLora])
def test_it_learns_as_peft_s_own_form_does(base: Any, kind: Any) -> None:
    method = kind(rank=RANK, alpha=ALPHA)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", init_lora_weights=method.name
    )
    theirs = losses(peft.get_peft_model(copy.deepcopy(base), config))
    adapted = Adapted(base, method, STEPS)
    ours = losses(adapted.model, method)
    assert adapted.remove()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < 0.95 * ours[0]
