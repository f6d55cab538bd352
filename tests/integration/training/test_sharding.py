"""A model that ZeRO-3 shards is the model that is loaded without, and one worker alone reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from deepspeed.runtime.zero import GatheredParameters
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.models.loading import load_model
from trainables.training import full_sft

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import TrialConfig


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
# Buffers of theirs have a dtype of their own, in which Transformers does not load into shards.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "recurrent_gemma": ("float32", {"lru_width": 16, "num_hidden_layers": 3}),
    "lfm2_moe": (
        "bfloat16",
        {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
}


def stopped_before_training(trial: TrialConfig, function: str, load: Any = None) -> list[Any]:
    """The arguments that `full_sft` gives to this function, or what `load` makes of them."""
    given: list[Any] = []

    def stop(*arguments: Any, **options: Any) -> None:
        given.append(load(*arguments, **options) if load else arguments)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_sft, function, stop)
        with pytest.raises(InterruptedError):
            full_sft.train_full_sft(trial, None)  # type: ignore[arg-type]
    return given


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_dtypes_are_those_of_a_model_that_is_loaded_without(
    family: str, tokenizer: Any, tmp_path: Path, make_trial: Callable[..., TrialConfig]
) -> None:
    """Except that DeepSpeed trains all parameters in one dtype, at any stage."""
    set_seed(0)
    dtype, options = FAMILIES[family]
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer)} | SHAPE | options
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():  # else norms that are not read would be 1 as well
            tensor += 0.05 * torch.randn(tensor.shape)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = {"name": str(tmp_path), "dtype": dtype}
    trial = make_trial("full", model=saved, deepspeed={"zero_stage": 3})
    ((_, _, found, *_),) = stopped_before_training(trial, "run_training")
    expected = load_model(trial.model)
    buffers, parameters = dict(found.named_buffers()), dict(found.named_parameters())
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(buffers.pop(name).cpu(), buffer, rtol=0, atol=0)
    for name, parameter in expected.named_parameters():
        with GatheredParameters([shard := parameters.pop(name)]):
            whole = parameter.to(getattr(torch, dtype))
            torch.testing.assert_close(shard.data.cpu(), whole.data, rtol=0, atol=0)
    assert not buffers
    assert not parameters


@pytest.mark.parametrize(
    ("rank", "stage", "is_hollow"), [(0, 3, False), (1, 3, True), (1, 2, False)]
)
def test_only_the_first_worker_loads_the_values(
    rank: int,
    stage: int,
    is_hollow: bool,
    make_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise every worker of a node would hold the whole model in its memory."""
    monkeypatch.setenv("RANK", str(rank))
    zero, train = {"zero_stage": stage}, {"micro_batch_size": 2}
    trial = make_trial("full", deepspeed=zero, workers=2, train=train)
    (loaded,) = stopped_before_training(trial, "load_model", load_model)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {tensor.is_meta for tensor in tensors} == {is_hollow}
