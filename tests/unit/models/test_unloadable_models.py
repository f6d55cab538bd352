"""A base model that cannot be loaded is a fault of its name, and says what is wrong with it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
from faults import faults
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertTokenizer

from trainables.config import ModelConfig
from trainables.models.loading import fingerprint, load_model, load_tokenizer, pinned

EMBEDDED = Path(__file__).parents[3] / "trainables" / "embedded" / "model"


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    """A copy of the embedded one."""
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    return ModelConfig(name=str(folder), dtype="float32")


def test_weights_that_are_half_of_a_download(model: ModelConfig) -> None:
    weights = Path(model.name) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (fault,) = faults(load_model, model)
    assert fault.field == "model.name"
    assert fault.rule.startswith(f"cannot load {model.name}: Error while deserializing header")


@pytest.mark.parametrize(("part", "told"), [("mlp", " and 2 more")])
def test_weights_that_lack_some_which_would_be_random(
    part: str, told: str, model: ModelConfig
) -> None:
    file = Path(model.name) / "model.safetensors"
    weights = load_file(file)
    dropped = [name for name in weights if f"layers.3.{part}" in name]
    kept = {name: tensor for name, tensor in weights.items() if name not in dropped}
    save_file(kept, file, {"format": "pt"})
    (fault,) = faults(load_model, model)
    rule = f"its files lack {min(dropped)}{told}"
    assert (fault.field, fault.rule) == ("model.name", f"cannot load {model.name}: {rule}")


def test_a_gguf_file_that_is_half_of_a_download(model: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\3\0\0\0half")
    for load in (load_tokenizer, load_model):
        (fault,) = faults(load, model.model_copy(update={"name": str(file)}))
        assert fault.field == "model.name"
        assert fault.rule.startswith(f"cannot load {file}: ")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ({"auto_map": {"AutoConfig": "own.Own"}}, "set model.trust_remote_code: true if you trust"),
        ({}, "upgrade Transformers, or name a model of an architecture that it has"),
    ],
)
def test_an_architecture_that_transformers_has_not(
    kind: dict[str, Any], remedy: str, model: ModelConfig
) -> None:
    file = Path(model.name) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "own"} | kind))
    file.with_name("own.py").touch()
    (fault,) = faults(load_model, model)
    assert fault.field == "model.name"
    assert str(fault.remedy).startswith(remedy)


def test_no_tokenizer(model: ModelConfig) -> None:
    for file in Path(model.name).glob("tokenizer*"):
        file.unlink()
    (fault,) = faults(load_tokenizer, model)
    assert fault.field == "model.name"
    needs = "it has no tokenizer, or one that needs sentencepiece or tiktoken"
    assert fault.rule == f"cannot load {model.name}: {needs}"
    assert fault.remedy == (
        "save it beside the weights, too: tokenizer.save_pretrained(FOLDER); "
        "or pip install sentencepiece tiktoken"
    )


@pytest.mark.parametrize("kind", ["gpt2"])
@pytest.mark.parametrize("has_settings", [False, True])
def test_an_empty_tokenizer_as_transformers_makes_for_weights_alone(
    has_settings: bool, kind: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(kind, vocab_size=600, hidden_size=32).save_pretrained(tmp_path)
    if has_settings:  # without the vocabulary
        settings = {"eos_token": "<end>", "extra_special_tokens": ["<tool>"]}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (fault,) = faults(load_tokenizer, ModelConfig(name=str(tmp_path), dtype="float32"))
    assert fault.field == "model.name"
    assert fault.rule.startswith("has no tokenizer, or an empty one")
    assert "tokenizer.save_pretrained" in fault.remedy


@pytest.mark.parametrize("kept", [-30])
@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("config.json", "It looks like the config file at '{}' is not a valid JSON file"),
        ("tokenizer.json", "a damaged JSON file: "),
        ("tokenizer_config.json", "a damaged JSON file: "),
    ],
)
def test_a_json_file_that_is_half_of_a_download(
    file: str, told: str, kept: int, model: ModelConfig
) -> None:
    path = Path(model.name) / file
    path.write_bytes(path.read_bytes()[:kept])
    (fault,) = faults(load_tokenizer, model)
    assert fault.rule.startswith(f"cannot load {model.name}: {told.format(path)}")
    assert fault.remedy == "fetch the model again, whole"


def test_an_adapter_on_a_model_is_refused(model: ModelConfig, tmp_path: Path) -> None:
    """Transformers loads it on its base; trials' own adapters would take its place there."""
    adapted = peft.get_peft_model(load_model(model), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    adapter = model.model_copy(update={"name": str(tmp_path / "adapter")})
    (fault,) = faults(load_model, adapter)
    assert fault.field == "model.name"
    assert fault.rule == f"must be a whole model, is an adapter on one: {adapter.name}"


def test_a_tokenizer_without_a_token_that_ends_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    AutoConfig.for_model("gpt2", vocab_size=7).save_pretrained(tmp_path)
    model = ModelConfig(name=str(tmp_path), dtype="float32")
    (fault,) = faults(load_tokenizer, model)
    assert fault.field == "model.eos_token"
    assert fault.remedy == "name one, as [SEP]"
    assert load_tokenizer(model.model_copy(update={"eos_token": "[SEP]"})).eos_token_id == 3


@pytest.mark.parametrize("kind", ["ConnectError", "ProxyError"])
def test_a_hub_that_is_lost_during_a_download_is_told_as_such(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sys.modules[HTTPError.__module__.partition(".")[0]]  # named by the hub's version
    error = getattr(client, kind)("no route")

    def lost(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("trainables.models.loading.hf_hub_download", lost)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lost)
    model = ModelConfig(name="lab/model", dtype="float32")
    (fault,) = faults(load_model, model)
    assert fault.remedy.startswith("see that the workers reach the hub (HTTPS_PROXY, ")
    assert pinned(model) == model
    with pytest.raises(OSError, match=kind):
        fingerprint(model)
