"""Error messages for models that cannot be loaded: the setting at fault, and what to do."""

from __future__ import annotations

import re
import struct
from json import JSONDecodeError
from pickle import UnpicklingError

from safetensors import SafetensorError

from trainables.config import ModelConfig
from trainables.errors import Fault, causes, first_line, hub_remedy

FETCH_AGAIN = "fetch the model again, whole"
_SAVE_TOKENIZER = "save it beside the weights, too: tokenizer.save_pretrained(FOLDER)"
_NO_TOKENIZER = "backend tokenizer"  # a list of ways to one follows, each in a line of its own
# By words of Transformers and the hub's client.
_REMEDIES = {
    _NO_TOKENIZER: f"{_SAVE_TOKENIZER}; or pip install sentencepiece tiktoken",
    "trust_remote_code": "set model.trust_remote_code: true if you trust its code",
    "not recognize this": "upgrade Transformers, or name a model of an architecture that it has",
    "kind of AutoModel": "name a model that continues text, such as a Llama, a Qwen3 or a Gemma 3",
    "gated repo": "set HF_TOKEN, where the sweep is started, to a token of one who has access",
}
# What is raised on files that are cut, in three formats of weights.
_DAMAGED = (SafetensorError, struct.error)
_TORCH_ERRORS = (RuntimeError, EOFError, UnpicklingError)
_NOT_A_TORCH_FILE = re.compile(r"PytorchStreamReader failed|unexpected EOF").search
# The attention that was asked for is not the model's, or its package is not installed.
_NAMES_ATTENTION = re.compile(
    r"attn_implementation|flash ?attention|`kernels`", re.IGNORECASE
).search
LOAD_ERRORS = (*_TORCH_ERRORS, *_DAMAGED, OSError, ValueError, ImportError, KeyError)


def loading_fault(model: ModelConfig, error: Exception, attention: str | None) -> Fault | None:
    """The fault behind one of `LOAD_ERRORS`; None if the input is not at fault.

    `attention` is what was asked for, if anything was.
    """
    if isinstance(error, _TORCH_ERRORS):
        reason = _torch_reason(error)
        if reason is None:
            return None
        return Fault("model.name", f"cannot load {model.name}: {reason}", FETCH_AGAIN)
    if attention and isinstance(error, (ValueError, ImportError)) and _NAMES_ATTENTION(str(error)):
        rule = f"cannot load {model.name} with {attention}: {first_line(error).rstrip('.')}"
        remedy = "leave it out, for what Transformers takes for this model"
        return Fault("model.attention", rule, remedy)
    return Fault("model.name", f"cannot load {model.name}: {_reason(error)}", _remedy(error))


def adapter_fault(name: str) -> Fault:
    """The fault of a model that is a base and an adapter on it."""
    remedy = "merge it into its base, as `python -m analysis export SWEEP_DIR --merge` does"
    return Fault("model.name", f"must be a whole model, is an adapter on one: {name}", remedy)


def tokenizer_fault(name: str) -> Fault:
    """The fault of a folder of weights alone, for which Transformers makes an empty tokenizer."""
    rule = f"has no tokenizer, or an empty one, which makes no tokens of a text: {name}"
    return Fault("model.name", rule, _SAVE_TOKENIZER)


def _torch_reason(error: Exception) -> str | None:
    if "mismatched" in str(error):
        return "its weights have other sizes than its config.json tells"
    if not isinstance(error, RuntimeError) or _NOT_A_TORCH_FILE(str(error)):
        return "its weights are no whole file of PyTorch's, or hold more than tensors"
    return None


def _reason(error: Exception) -> str:
    if _NO_TOKENIZER in str(error):
        return "it has no tokenizer, or one that needs sentencepiece or tiktoken"
    reason = first_line(error).rstrip(".")
    is_json = isinstance(error, JSONDecodeError) and _is_damaged_file(error)
    return f"a damaged JSON file: {reason}" if is_json else reason


def _remedy(error: Exception) -> str:
    if _is_damaged_file(error):
        return FETCH_AGAIN
    fitting = (remedy for words, remedy in _REMEDIES.items() if words in str(error))
    names = "give a hub name, a local folder, a .gguf file or package://PACKAGE/FILE"
    return next(fitting, "") or hub_remedy(error) or names


def _is_damaged_file(error: Exception) -> bool:
    """Also where a cut JSON is the cause, unless that is the answer of a hub."""
    is_cut = any(isinstance(cause, JSONDecodeError) for cause in causes(error))
    return isinstance(error, _DAMAGED) or (is_cut and not hub_remedy(error))
