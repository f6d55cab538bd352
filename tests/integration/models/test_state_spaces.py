"""Models with Mamba's layers, of which PEFT adapts but some: a sweep's default trains those."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import peft
import pytest
from faults import faults
from in_slots import measured_in_slots
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import LoraConfig, ModelConfig
from trainables.config.trial_config import BaseRequirements
from trainables.models.adaptable import check_adaptable
from trainables.models.lora_adapter import linear_layers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


# One has attention beside its state spaces, the other nothing else.
FAMILIES: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        **{"mamba_n_groups": 1, "mamba_chunk_size": 8},
    },
    "mamba2": {
        **{"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
        "expand": 2,
    },
}


@pytest.fixture(params=FAMILIES)
def model(request: Any, tokenizer: Any, tmp_path: Path) -> ModelConfig:
    set_seed(0)
    options = {**SHAPE, "vocab_size": len(tokenizer), **FAMILIES[request.param]}
    config = AutoConfig.for_model(request.param, **options)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return ModelConfig(name=str(tmp_path / "base"), dtype="float32")


def test_all_linear_is_what_peft_takes(
    model: ModelConfig,
    make_trial: MakeTrial,
    run: Callable[[TrialConfig], Run],
    trl_curve: Callable[..., list[float]],
) -> None:
    trials = [make_trial().model_copy(update={"model": model}) for _ in range(2)]
    adapter = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        exclude_modules=r".*\.out_proj",
        task_type="CAUSAL_LM",
    )
    alone = run(trials[0])
    assert alone.curve() == pytest.approx(trl_curve(trials[0], adapter), abs=1e-5)
    (in_slot,) = measured_in_slots(trials[1])
    losses = [measurement.metrics["train/loss"] for measurement in in_slot]
    assert losses == pytest.approx(alone.curve(), abs=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_refused_layer_that_is_named_is_told_of_with_those_that_are_not(kind: str) -> None:
    options = {**SHAPE, "vocab_size": 60, **FAMILIES[kind]}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    named = LoraConfig(rank=2, alpha=4, target_modules=("in_proj", "out_proj"))
    (fault,) = faults(check_adaptable, base, BaseRequirements(adapters=(named,)))
    assert "Module 'out_proj' is incompatible with Mamba" in fault.rule
    layers = linear_layers(base)
    assert fault.remedy.endswith(f"or name linear layers: {', '.join(layers)}")
    taken = named.model_copy(update={"target_modules": tuple(layers)})
    check_adaptable(base, BaseRequirements(adapters=(taken,)))
