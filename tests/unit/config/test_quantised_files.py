"""Model files that are quantised are told of by their `config.json`, before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import faults

from trainables.models.loading import load_model
from tune.config.preflight import check_files
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep

OF_4_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
REFUSED = {
    "bitsandbytes in 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "fp8": {"quant_method": "fp8"},
    "mxfp4": {"quant_method": "mxfp4"},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "a method that config.json does not name": {"bits": 4},
}


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    """A sweep of a model whose `config.json` says that it is quantised so, without its weights."""

    def sweep(
        quantisation: dict[str, Any] | None, is_of_text: bool, *overrides: str
    ) -> SweepConfig:
        config: dict[str, Any] = {"model_type": "llama", "quantization_config": quantisation}
        if is_of_text:
            config = {"model_type": "gemma3", "text_config": config}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").touch()
        return load_sweep("quickstart", [f"model.name={tmp_path}", "search.full=null", *overrides])

    return sweep


@pytest.mark.parametrize("is_of_text", [False, True])
@pytest.mark.parametrize("in_4_bits", ["false", "true"])
@pytest.mark.parametrize("method", REFUSED)
def test_what_cannot_be_trained_on_is_refused_before_anything_runs(
    method: str, in_4_bits: str, is_of_text: bool, sweep: Any, tmp_path: Path
) -> None:
    config = sweep(REFUSED[method], is_of_text, f"model.load_in_4bit={in_4_bits}")
    (fault,) = faults(check_files, config, tmp_path)
    assert fault.field == "model.name"
    assert fault.rule.endswith(f"the files of {tmp_path} are quantised by {method}")
    assert fault.remedy.startswith("name the unquantised model")
    assert "model.load_in_4bit" in fault.remedy
    assert faults(load_model, config.model) == [fault]


def test_files_in_4_bits_need_load_in_4bit(sweep: Any, tmp_path: Path) -> None:
    as_it_is, otherwise = (
        sweep(OF_4_BITS, False, f"model.load_in_4bit={bits}") for bits in ("true", "false")
    )
    check_files(as_it_is, tmp_path)
    (fault,) = faults(check_files, otherwise, tmp_path)
    assert fault.field == "model.load_in_4bit"
    assert fault.rule.startswith(f"must be true, as the files of {tmp_path}")
    assert "unquantised model" in fault.remedy
    assert faults(load_model, otherwise.model) == [fault]


def test_files_that_are_not_quantised_take_either(sweep: Any, tmp_path: Path) -> None:
    for bits in ("false", "true"):
        check_files(sweep(None, False, f"model.load_in_4bit={bits}"), tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_left_to_who_loads_it(content: str, sweep: Any, tmp_path: Path) -> None:
    config = sweep(None, False)
    (tmp_path / "config.json").write_text(content)
    check_files(config, tmp_path)
    (fault,) = faults(load_model, config.model)
    assert fault.rule.startswith(f"cannot load {tmp_path}")
