"""Weights that are damaged, or too large to look into: their trial's record says so."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import peft
import pytest
import torch
from builders import record_sweep, scores, trial
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.export.weights import merge_adapter
from analysis.inspect_models import inspect_trials
from trainables.config import LoraConfig, ModelConfig
from trainables.errors import CannotInspect, UserError
from trainables.inspection import activations
from trainables.inspection import inspect_trial as inspection
from trainables.records.ledger import Ledger


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three LoRA trials with adapters, and a full one."""
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sweep"
    llama().save_pretrained(tmp_path / "model")
    records = []
    for number, method in enumerate(("lora", "lora", "lora", "full")):
        weights = Ledger(folder).folder.attempt(number, 1) / "weights"
        if method == "lora":
            adapter = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
            peft.get_peft_model(llama(), adapter).save_pretrained(weights)
        else:
            llama().save_pretrained(weights)
        records.append(
            trial(
                number,
                scores(0.5, 0.0),
                method=method,
                lora=LoraConfig(rank=8, alpha=16) if method == "lora" else None,
                model=ModelConfig(name=str(tmp_path / "model"), dtype="float32"),
                weights_dir=str(weights),
            )
        )
    record_sweep(folder, *records)
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def no_memory(*_: object) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 TiB")


def test_what_is_wrong_with_one_trials_weights_stops_no_other(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [Ledger(sweep).folder.attempt(number, 1) / "weights" for number in range(4)]
    cut(weights[0] / "adapter_config.json")
    tensors = load_file(weights[1] / "adapter_model.safetensors")
    halves = {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}
    save_file(halves, weights[1] / "adapter_model.safetensors")
    cut(weights[3] / "config.json")
    monkeypatch.setattr(inspection, "choose_prompts", lambda *_: [])
    monkeypatch.setattr(inspection, "activation_drift", no_memory)
    configured, halved, large, full = inspect_trials(sweep, range(4))
    assert (configured.reason or "").startswith(f"{weights[0]}/adapter_config.json is damaged: ")
    assert (halved.reason or "").startswith(f"{weights[1]} lacks ")
    assert "lora_B" in (halved.reason or "")
    assert large.reason == "OutOfMemoryError: CUDA out of memory."
    assert len(large.matrices) == 7  # found before, and kept
    assert (full.reason or "").startswith(f"{weights[3]}/config.json is damaged: ")


def test_a_model_of_which_a_part_is_gone_cannot_be_inspected(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "shared_base", lambda _: llama())
    record = Ledger(sweep).trial(3)
    weights = Path(record.weights_dir or "")
    (weights / "model.safetensors").unlink()
    llama().save_pretrained(weights, max_shard_size="2KB")
    shards = sorted(weights.glob("*.safetensors"))
    whole = shards[0].read_bytes()
    for breaking in (lambda: cut(shards[0]), shards[0].unlink):
        shards[0].write_bytes(whole)
        breaking()
        with pytest.raises(CannotInspect, match=f"{weights} cannot be loaded: "):
            activations.activation_drift(record.config, weights, [])


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({!r}).touch()
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
"""


def test_of_code_of_its_own_a_full_model_has_but_its_base_s_run(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_base_that_an_adapter_broke_off_in_is_not_compared_with_again(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @lru_cache(maxsize=1)
    def shared_base(_: ModelConfig) -> Any:
        return llama()

    monkeypatch.setattr(activations, "shared_base", shared_base)
    record = Ledger(sweep).trial(0)
    file = Path(record.weights_dir or "") / "adapter_model.safetensors"
    save_file({name: tensor[:, :3].contiguous() for name, tensor in load_file(file).items()}, file)
    with pytest.raises(RuntimeError, match="size mismatch"):
        activations.activation_drift(record.config, file.parent, [])
    base = shared_base(record.config.model.model_copy(update={"attention": "eager"}))
    assert not [name for name, _ in base.named_parameters() if "lora" in name]


def test_an_adapter_that_cannot_be_merged_is_blamed_itself(sweep: Path, tmp_path: Path) -> None:
    weights = Ledger(sweep).folder.attempt(0, 1) / "weights"
    cut(weights / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"--trial: its weights are damaged: {weights}"):
        merge_adapter(ModelConfig(name=str(tmp_path / "model")), weights, tmp_path / "merged")
