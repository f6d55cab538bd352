"""Weights that are damaged, or too large to inspect: their trial's record says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import peft
import pytest
import torch
from builders import record_sweep, scores, trial
from safetensors.torch import load_file, save_file
from tiny_decoder import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.inspect_models import inspect_trials
from trainables.config import ModelConfig
from trainables.errors import CannotInspect
from trainables.inspection import activations
from trainables.inspection import inspect_trial as inspection
from trainables.records.ledger import Ledger


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **SHAPE))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three LoRA trials with adapters, and a full one."""
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sweep"
    llama().save_pretrained(tmp_path / "model")
    records = []
    for number, method in enumerate(("lora", "lora", "lora", "full")):
        weights = Ledger(folder).folder.attempt(number, 1) / "weights"
        model = llama()
        if method == "lora":
            adapter = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
            model = peft.get_peft_model(model, adapter)
        model.save_pretrained(weights)
        fields = {
            "model": ModelConfig(name=str(tmp_path / "model"), dtype="float32"),
            "weights_dir": str(weights),
        }
        records.append(trial(number, scores(0.5, 0.0), method=method, **fields))
    record_sweep(folder, *records)
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def no_memory(*_: object) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 TiB")


def test_a_record_says_what_is_wrong_with_its_trial_s_weights(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other trials are inspected."""
    weights = [Ledger(sweep).folder.attempt(number, 1) / "weights" for number in range(4)]
    cut(weights[0] / "adapter_config.json")
    tensors = load_file(weights[1] / "adapter_model.safetensors")
    halves = {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}
    save_file(halves, weights[1] / "adapter_model.safetensors")
    cut(weights[3] / "model.safetensors")
    monkeypatch.setattr(inspection, "choose_prompts", lambda *_: [])
    monkeypatch.setattr(inspection, "activation_drift", no_memory)
    records = inspect_trials(sweep, range(4))
    facts = ("adapter_config.json is damaged", "lora_B", "out of memory", "safetensors is damaged")
    for record, fact in zip(records, facts, strict=True):
        assert fact in str(record.reason)
    assert "TiB" not in str(records[2].reason)
    assert len(records[2].matrices) == 14  # inspected before, and kept


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({!r}).touch()
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
"""


def test_code_beside_a_trial_s_weights_never_runs(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's code does."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(activations, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(activations, "encode", lambda *_: [])
    record = Ledger(sweep).trial(3)
    weights = Path(record.weights_dir or "")
    for folder, ran in ((tmp_path / "model", "base_ran"), (weights, "ran")):
        auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        settings = json.loads((folder / "config.json").read_text())
        settings |= {"model_type": "own", "auto_map": auto}
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "own.py").write_text(OWN_CODE.format(str(tmp_path / ran)))
    trusted = record.config.model.model_copy(update={"trust_remote_code": True})
    config = record.config.model_copy(update={"model": trusted})
    with pytest.raises(CannotInspect, match="no prompt has"):  # so both models were loaded
        activations.activation_drift(config, weights, [])
    assert (tmp_path / "base_ran").exists()
    assert not (tmp_path / "ran").exists()
