"""Mixtures of experts: LoRA on them, and their routers, which have no loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from faults import faults
from in_slots import measured_in_slots
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import BaseRequirements, ModelConfig
from trainables.methods import Method
from trainables.methods.lora import Lora
from trainables.models.adaptable import check_adaptable
from trainables.packing.packable import NotPackable, resolve_targets
from trainables.training.adapter_sft import train_adapter
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
LORA = Lora(rank=2, alpha=4)


def network(kind: str, vocabulary: int = 60, **options: Any) -> Any:
    set_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **SHAPE, **EXPERTS, **options)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Callable[..., ModelConfig]:
    """A small mixture in a folder, with the embedded model's tokenizer."""

    def save(kind: str, **options: Any) -> ModelConfig:
        folder = tmp_path / f"{kind}_{len(list(tmp_path.iterdir()))}"
        network(kind, len(tokenizer), **options).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return ModelConfig(name=str(folder), dtype="float32")

    return save


ATTENTION = ("k_proj", "q_proj")


def needing(*methods: Method) -> BaseRequirements:
    return BaseRequirements(adapters=tuple(("mine", each) for each in methods))


@pytest.mark.parametrize(
    ("modules", "axis", "values", "asked"),
    [
        (["all-linear"], "dropout", [0.0, 0.1, 0.2], "dropout 0.1"),
        ([ATTENTION, "all-linear"], "dora", [False, True], "dora true"),
    ],
)
def test_choices_that_peft_refuses_on_experts_are_named(
    modules: list[Any], axis: str, values: list[Any], asked: str
) -> None:
    base = network("mixtral")
    before = {name: id(module) for name, module in base.named_modules()}
    choices = [{"target_modules": each, axis: value} for each in modules for value in values]
    (fault,) = faults(
        check_adaptable, base, needing(*(LORA.model_copy(update=each) for each in choices))
    )
    assert fault.field == "search.mine"
    told = f"PEFT cannot adapt the model with target_modules all-linear, {asked}: "
    assert fault.rule.startswith(told)
    assert "ParamWrapper" in fault.rule
    assert fault.remedy.endswith("or name linear layers: q_proj, k_proj, v_proj, o_proj")
    assert {name: id(module) for name, module in base.named_modules()} == before
    attention = [LORA.model_copy(update={"target_modules": ATTENTION, axis: v}) for v in values]
    check_adaptable(base, needing(*attention))


def test_the_routers_add_nothing_to_the_loss_alone_and_in_a_slot(
    make_trial: MakeTrial, saved: Callable[..., ModelConfig]
) -> None:
    losses = []
    for options in ({"router_aux_loss_coef": 0.0}, {"output_router_logits": True}):
        model = saved("mixtral", **{"router_aux_loss_coef": 0.5} | options)
        trials = [
            make_trial(lora={"target_modules": ("q_proj", "v_proj")}).model_copy(
                update={"model": model}
            )
            for _ in range(2)
        ]
        reporter = ListReporter()
        train_adapter(trials[0], reporter)
        runs = [reporter.measurements, *measured_in_slots(trials[1])]
        losses += [[m.metrics["train/loss"] for m in run] for run in runs]
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], abs=1e-4)


def test_experts_that_peft_adapts_are_left_to_it() -> None:
    with pytest.raises(NotPackable, match=r"experts\.\w+ is adapted, and is no linear layer's"):
        resolve_targets(network("qwen3_moe"), LORA)
