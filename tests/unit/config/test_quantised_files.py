"""Quantised model files are recognised by their `config.json`, before weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import faults

from trainables.errors import Fault, collecting
from trainables.models.loading import load_model
from tune.config.preflight import check_files
from tune.config.sweep_file import load_sweep


def refusals(folder: Path, quantisation: Any, in_4_bits: bool) -> list[Fault]:
    """The faults of a sweep with a model quantised like this; none if it is accepted."""
    config = {"model_type": "llama", "quantization_config": quantisation}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    settings = [f"model.name={folder}", f"model.load_in_4bit={in_4_bits}"]
    sweep = load_sweep("quickstart", [*settings, "search.full=null"])
    found: list[Fault] = []
    with collecting(found):
        check_files(sweep, folder)
    if found:
        assert faults(load_model, sweep.model) == found
    return found


@pytest.mark.parametrize(
    ("quantisation", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bits"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"bits": 4}, "does not name"),
    ],
)
def test_files_that_cannot_be_trained_on_are_refused(
    quantisation: dict[str, Any], method: str, tmp_path: Path
) -> None:
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    assert refusals(tmp_path, four_bits, in_4_bits=True) == []
    (fault,) = refusals(tmp_path, quantisation, in_4_bits=False)
    assert fault.field == "model.name"
    assert method in fault.rule
    assert "model.load_in_4bit" in fault.remedy
