"""A base that looks at later tokens is refused: its training would be shown the answers.

So is one that cannot compute, which shows here first.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from faults import faults
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import BaseRequirements, ModelConfig
from trainables.errors import UserError
from trainables.evaluation.base_inputs import check_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


CPM_ANT = {"dim_head": 8, "dim_ff": 24}
XLNET = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24}


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Callable[..., ModelConfig]:
    """A small model whose tokens look at each other, unlike those of one that is but drawn."""

    def save(kind: str, dtype: str, options: dict[str, Any]) -> ModelConfig:
        set_seed(0)
        sizes: dict[str, Any] = {"vocab_size": len(tokenizer)} | SHAPE | options
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return ModelConfig(name=str(tmp_path), dtype=dtype)

    return save


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "options"), [("bert", {}), ("cpmant", CPM_ANT)])
def test_one_that_looks_at_later_tokens_is_refused(
    kind: str, options: dict[str, Any], dtype: str, saved: Callable[..., ModelConfig]
) -> None:
    model = saved(kind, dtype, options)
    (fault,) = faults(check_base, model, BaseRequirements())
    rule = f"must predict a token from those before it; {model.name} looks at later ones, too"
    assert (fault.field, fault.rule) == ("model.name", rule)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"is_decoder": True}),
        ("mixtral", {"num_local_experts": 4}),
        ("mamba", {"state_size": 4}),
    ],
)
def test_one_that_looks_at_earlier_tokens_alone_is_taken(
    kind: str, options: dict[str, Any], dtype: str, saved: Callable[..., ModelConfig]
) -> None:
    check_base(saved(kind, dtype, options), BaseRequirements())


@pytest.mark.parametrize(
    ("kind", "dtype", "options", "told"),
    [
        (
            "xlnet",
            "bfloat16",
            XLNET,
            "model.name: {} cannot compute in bfloat16 what follows a text: RuntimeError: expected "
            "scalar type Float but found BFloat16; take another model.dtype",
        ),
        (
            "xmod",
            "bfloat16",
            {},
            "model.name: {} cannot compute in bfloat16 what follows a text: ValueError: Input lang",
        ),
    ],
)
def test_one_that_cannot_compute_is_told_with_the_setting_at_fault(
    kind: str,
    dtype: str,
    options: dict[str, Any],
    told: str,
    saved: Callable[..., ModelConfig],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = saved(kind, dtype, options)
    (fault,) = faults(check_base, model, BaseRequirements())
    assert str(fault).startswith(told.format(model.name))
    assert f"modeling_{kind}.py" in caplog.text  # the traceback, which may lead to their own code


def test_one_without_an_embedding_of_a_token_is_told_of_it(
    saved: Callable[..., ModelConfig],
) -> None:
    """A GPU would say that an assertion failed, and be lost."""
    with pytest.raises(UserError, match="is used, and the model embeds 3 tokens"):
        check_base(saved("llama", "float32", {"vocab_size": 3}), BaseRequirements())


def test_the_process_ends_where_it_is_the_device_that_cannot_compute(
    saved: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process the base's evaluation can go on."""

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        check_base(saved("xmod", "float32", {}), BaseRequirements())
