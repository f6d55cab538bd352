"""The shape of a model is read from its files, and its parameters counted from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainables.config import ModelConfig, ModelShape
from trainables.decoder_shape import parameters as parameters_of
from trainables.models import model_shape
from trainables.models.model_shape import _FAMILIES, read_shape

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
    "pad_token_id": 0,
}
SHAPE = ModelShape(
    hidden=8, intermediate=16, vocabulary=10, layers=1, heads=2, kv_heads=2, head_size=4
)


def count(config: Any) -> int:
    """Parameters of the real architecture, built without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "tied", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {}]
)
@pytest.mark.parametrize("family", _FAMILIES)
def test_every_parameter_is_counted(family: str, tied: dict[str, bool], tmp_path: Path) -> None:
    """Transformers wrote whether they are tied only where that was not usual."""
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **SIZES, **tied}))
    shape = read_shape(ModelConfig(name=str(tmp_path)))
    assert shape is not None
    assert parameters_of(shape) == count(AutoConfig.from_pretrained(tmp_path))


def test_where_the_sweep_file_gives_the_shape_no_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head without a network would wait for it."""
    asked: list[str] = []
    monkeypatch.setattr(model_shape, "_fetched", lambda name, _: asked.append(name))
    assert read_shape(ModelConfig(name="org/model", shape=SHAPE)) == SHAPE
    assert asked == []
    assert read_shape(ModelConfig(name="org/model")) is None
    assert asked == ["org/model"]


@pytest.mark.parametrize(
    ("sweep", "parameters"),
    [("paper_llama31_8b", 8_030_261_248), ("paper_qwen25_7b", 7_615_616_512)],
)
def test_the_bundled_sweeps_give_the_shapes_of_their_models(sweep: str, parameters: int) -> None:
    """The counts are those that the models' publishers give with the weights."""
    from tune.config.sweep_file import load_sweep

    shape = load_sweep(sweep, []).model.shape
    assert shape is not None
    assert parameters_of(shape) == parameters


def test_a_fetched_hub_model_is_found_and_one_that_is_not_has_the_sweep_file_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = ModelConfig(name="org/model", shape=SHAPE)
    assert read_shape(model) == SHAPE
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    found = read_shape(model)
    assert found is not None
    assert found.hidden == SIZES["hidden_size"]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 8},
        {"model_type": "mixtral", **SIZES},
        {"model_type": "llama"},
        {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2},
    ],
)
def test_a_shape_that_the_file_does_not_tell_is_left_to_the_sweep_file(
    config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(ModelConfig(name=str(tmp_path))) is None
    assert read_shape(ModelConfig(name=str(tmp_path), shape=SHAPE)) == SHAPE
