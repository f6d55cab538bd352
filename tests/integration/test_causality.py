"""A base that looks at later tokens is refused: its training would be shown the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import Demands, ModelConfig
from trainables.errors import UserError
from trainables.evaluation.base_inputs import check_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.in_process]

CPM_ANT = {"dim_head": 8, "dim_ff": 24}


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
    with pytest.raises(UserError) as caught:
        check_base(model, Demands())
    (fault,) = caught.value.faults
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
    check_base(saved(kind, dtype, options), Demands())
