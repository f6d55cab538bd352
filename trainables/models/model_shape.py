"""A model's shape, read from its `config.json` without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainables.config import ModelConfig, ModelShape
from trainables.errors import Fault
from trainables.storage.locations import expanded, is_local, resolve

# Decoders made of the blocks that `process.memory_estimate` knows. Tests count their parameters.
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3")
_BIASED = ("qwen2",)  # not stated in config.json
_NORMED_HEADS = ("qwen3",)
_TIED = ("gemma", "smollm3")  # unless stated
# Their linear layers, and what else of them LoRA can be on.
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BESIDE_LAYERS = ("embed_tokens", "lm_head")
_CONFIG = "config.json"
_PATIENCE_S = 3.0


def read_shape(model: ModelConfig) -> ModelShape | None:
    """The shape from the model's own `config.json`, else from the sweep file.

    None if neither states it, or if the architecture is not known here.
    """
    return _shape(config_json(model, may_fetch=model.shape is None)) or model.shape


def target_module_faults(model: ModelConfig, field: str, names: Iterable[str]) -> list[Fault]:
    """Target modules of a field that the model's own files show it has not.

    Loading the model shows it of any architecture, with which a sweep begins on its cluster.
    """
    known = {*_LINEAR, *_BESIDE_LAYERS}
    absent = sorted({name for name in names if name.rpartition(".")[2] not in known})
    if not absent or _shape(config_json(model, may_fetch=model.shape is None)) is None:
        return []
    rule = f"the model has no {', '.join(absent)}"
    return [Fault(field, rule, f"it has {', '.join(_LINEAR)}")]


def architecture(model: ModelConfig) -> str | None:
    """The `model_type` of the model's own `config.json`; None if it is not on this machine."""
    return config_json(model, may_fetch=model.shape is None).get("model_type")


def config_json(model: ModelConfig, may_fetch: bool) -> dict[str, Any]:
    """The model's `config.json`; empty if there is none, or none that can be read.

    A hub model's is fetched alone if it is not on this machine yet and `may_fetch`.
    """
    try:
        location = resolve(model.name)
    except ModuleNotFoundError:
        return {}
    if is_local(location):
        file: Path | None = expanded(location) / _CONFIG
    else:
        file = in_hub_cache(location, _CONFIG, model.revision)
        if file is None and may_fetch:
            file = _fetched(location, model.revision)
    if file is None:
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # loading the model tells
        return {}
    return config if isinstance(config, dict) else {}


def in_hub_cache(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a hub model that is on this machine; None if it is not."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no hub has such names
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None
    return None


@lru_cache(maxsize=1)  # a hub that does not answer takes seconds, and a plan asks twice
def _fetched(name: str, revision: str | None) -> Path | None:
    """The file from the hub; None if that is not reached or does not give it.

    The base's evaluation tells why, as it cannot do without.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    with suppress(Exception):  # the client's errors have no class in common
        # A download by itself tries for minutes where nothing answers; this tries once.
        get_hf_file_metadata(hf_hub_url(name, _CONFIG, revision=revision), timeout=_PATIENCE_S)
        return Path(hf_hub_download(name, _CONFIG, revision=revision))
    return None


def _shape(config: dict[str, Any]) -> ModelShape | None:
    family = config.get("model_type")
    if family not in _FAMILIES:
        return None
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return ModelShape(
            hidden=hidden,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or hidden // heads,
            tied_embeddings=config.get("tie_word_embeddings", family in _TIED),
            attention_bias=family in _BIASED,
            normed_heads=family in _NORMED_HEADS,
        )
    except KeyError:  # the file leaves it to Transformers
        return None
