"""Model files that are quantised already: which of them can be trained on, told before loading."""

from __future__ import annotations

from typing import Any

from trainables.config import ModelConfig
from trainables.errors import Fault, as_written

_OF_4_BITS = "bitsandbytes in 4 bits"
READ_AS_PLAIN = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Methods whose files are read as what they stand for, and the class of Transformers that says so.
"""


def method_of(config: dict[str, Any]) -> str | None:
    """By what the files beside a `config.json` are quantised; None if they are not."""
    # A model that also takes images may state it of its text alone.
    of_text = config.get("text_config") or {}
    stated = config.get("quantization_config") or of_text.get("quantization_config")
    if not stated:
        return None
    if stated.get("load_in_4bit"):
        return _OF_4_BITS
    if stated.get("load_in_8bit"):
        return "bitsandbytes in 8 bits"
    return str(stated.get("quant_method", "a method that config.json does not name"))


def faults_of_files(model: ModelConfig, config: dict[str, Any]) -> list[Fault]:
    """What of the model's files, by their `config.json`, no trial could be trained on."""
    method, files = method_of(config), f"the files of {model.name}"
    unquantised = "name the unquantised model that they were made from"
    if method is None:
        return []
    if method != _OF_4_BITS and method not in READ_AS_PLAIN:
        rule = f"must be of weights that can be trained on; {files} are quantised by {method}"
        remedy = f"{unquantised}; model.load_in_4bit: true holds it in 4 bits"
        return [Fault("model.name", rule, remedy)]
    wanted, got = method == _OF_4_BITS, model.load_in_4bit
    if got == wanted:
        return []
    rule = f"must be {as_written(wanted)}, as {files} are of {method}, got {as_written(got)}"
    return [Fault("model.load_in_4bit", rule, f"set it so, or {unquantised}")]
