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
# What Transformers loads otherwise into shards, or cannot load into them.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a weight of another value": (
        "deepseek_v4",
        "float32",
        {
            **{"n_routed_experts": 4, "n_shared_experts": 1, **EXPERTS, "num_hash_layers": 0},
            **{"q_lora_rank": 8, "o_lora_rank": 8, "o_groups": 1, "qk_rope_head_dim": 4},
            **{"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "sliding_window": 6},
        },
    ),
    "a buffer of a dtype of its own": (
        "recurrent_gemma",
        "float32",
        {"lru_width": 16, "attention_window_size": 6, "num_hidden_layers": 3},
    ),
    "a buffer of more precision": (
        "lfm2_moe",
        "bfloat16",
        {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    "weights whose shapes are looked at": ("rwkv", "float32", {"attention_hidden_size": 16}),
    "weights split by their sizes": (
        "sarvam_moe",
        "float32",
        {**EXPERTS, "num_shared_experts": 1, "first_k_dense_replace": 1},
    ),
}


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Callable[..., dict[str, str]]:
    def save(kind: str, dtype: str, options: dict[str, Any]) -> dict[str, str]:
        set_seed(0)
        sizes: dict[str, Any] = {"vocab_size": len(tokenizer)} | SHAPE | options
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():  # else norms that are not read would be 1 as well
                tensor += 0.05 * torch.randn(tensor.shape)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return {"name": str(tmp_path), "dtype": dtype}

    return save


def prepared(trial: TrialConfig) -> Any:
    """The model as it is given to the trainer."""
    given: list[Any] = []

    def stop(*arguments: Any) -> None:
        given.append(arguments[2])
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_sft, "run_training", stop)
        with pytest.raises(InterruptedError):
            full_sft.train_full_sft(trial, None)  # type: ignore[arg-type]
    return given[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_dtypes_are_those_of_a_model_that_is_loaded_without(
    family: str, saved: Callable[..., dict[str, str]], make_trial: Callable[..., TrialConfig]
) -> None:
    """But that DeepSpeed trains all parameters in one dtype, at any stage."""
    trial = make_trial("full", model=saved(*FAMILIES[family]), deepspeed={"zero_stage": 3})
    expected, found = load_model(trial.model), prepared(trial)
    buffers = dict(found.named_buffers())
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(buffers.pop(name).cpu(), buffer, rtol=0, atol=0)
    parameters = dict(found.named_parameters())
    for name, parameter in expected.named_parameters():
        with GatheredParameters([shard := parameters.pop(name)]):
            whole = parameter.to(getattr(torch, trial.model.dtype))
            torch.testing.assert_close(shard.data.cpu(), whole.data, rtol=0, atol=0)
    assert not buffers
    assert not parameters


@pytest.mark.parametrize(
    ("rank", "stage", "is_hollow"), [(0, 3, False), (1, 3, True), (1, 2, False)]
)
def test_the_first_of_a_group_alone_has_the_values_that_the_others_are_sent(
    rank: int,
    stage: int,
    is_hollow: bool,
    make_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise all workers of a node would hold the whole model in its memory."""
    loaded: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(load_model(*arguments, **options))
        raise InterruptedError

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(full_sft, "load_model", load)
    zero, train = {"zero_stage": stage}, {"micro_batch_size": 2}
    trial = make_trial("full", deepspeed=zero, workers=2, train=train)
    with pytest.raises(InterruptedError):
        full_sft.train_full_sft(trial, None)  # type: ignore[arg-type]
    tensors = [*loaded[0].parameters(), *loaded[0].buffers()]
    assert {tensor.is_meta for tensor in tensors} == {is_hollow}
