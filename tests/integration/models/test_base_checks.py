"""A base that cannot compute is refused before a trial is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from faults import faults
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from trainables.config import BaseRequirements, ModelConfig
from trainables.evaluation.base_inputs import check_base
from trainables.models.loading import load_model

if TYPE_CHECKING:
    from pathlib import Path

XLNET = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24}


def test_a_base_computes_with_no_code_from_the_hub() -> None:
    base = load_model(ModelConfig(name="package://trainables/embedded/model"))
    assert not base.use_kernels


def test_a_base_that_cannot_compute_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    """XLNet mixes float32 into bfloat16."""
    set_seed(0)
    sizes = {"vocab_size": len(tokenizer), **SHAPE, **XLNET}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("xlnet", **sizes))
    for saved in (network, tokenizer):
        saved.save_pretrained(tmp_path)
    model = ModelConfig(name=str(tmp_path), dtype="bfloat16")
    (fault,) = faults(check_base, model, BaseRequirements())
    assert fault.field == "model.name"
    assert "cannot compute in bfloat16" in fault.rule
    assert "RuntimeError" in fault.rule
    assert "another model.dtype" in fault.remedy
