"""Which quantised model files can be trained on, read from `config.json` before loading."""

from __future__ import annotations

from typing import Any

from trainables.config import ModelConfig
from trainables.errors import Fault, as_written

_IN_4_BITS = "bitsandbytes in 4 bits"


def quantisation_method(config: dict[str, Any]) -> str | None:
    """How the weights beside a `config.json` are quantised; None if they are not."""
    # A model that also takes images may state it for its text decoder alone.
    decoder = config.get("text_config") or {}
    stated = config.get("quantization_config") or decoder.get("quantization_config")
    if not stated:
        return None
    if stated.get("load_in_4bit"):
        return _IN_4_BITS
    if stated.get("load_in_8bit"):
        return "bitsandbytes in 8 bits"
    return str(stated.get("quant_method", "a method that config.json does not name"))


def quantisation_faults(model: ModelConfig, config: dict[str, Any]) -> list[Fault]:
    """Why no trial could be trained on the model's files, by their `config.json`."""
    method = quantisation_method(config)
    if method is None or (method == _IN_4_BITS and model.load_in_4bit):
        return []
    remedy = "name the unquantised model that they were made from"
    if method == _IN_4_BITS:
        got = as_written(model.load_in_4bit)
        rule = f"must be true, as the files of {model.name} are of {method}, got {got}"
        return [Fault("model.load_in_4bit", rule, f"set it so, or {remedy}")]
    rule = f"must have weights that can be trained; the files of {model.name} are quantised by "
    remedy += "; model.load_in_4bit: true holds it in 4 bits"
    return [Fault("model.name", rule + method, remedy)]
