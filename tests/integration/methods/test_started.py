"""Adapters with a start of their own learn, step by step, as PEFT's own forms of them do."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
from random_token_training import losses

from trainables.config import ModelConfig
from trainables.methods.olora import OLora
from trainables.methods.pissa import Pissa
from trainables.models.adapter import Adapted
from trainables.models.loading import load_model

MODEL = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
RANK, ALPHA, STEPS = 4, 8.0, 6  # before rounding grows
CLIP = 1.0


@pytest.fixture(scope="module")
def base() -> Any:
    return load_model(MODEL).eval()


@pytest.mark.parametrize("kind", [Pissa, OLora])
def test_it_learns_as_peft_s_own_form_does(base: Any, kind: Any) -> None:
    method = kind(rank=RANK, alpha=ALPHA)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", init_lora_weights=method.name
    )
    theirs = losses(peft.get_peft_model(copy.deepcopy(base), config), STEPS, CLIP)
    adapted = Adapted(base, method, STEPS)
    ours = losses(adapted.model, STEPS, CLIP, method)
    assert adapted.remove()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < 0.95 * ours[0]
