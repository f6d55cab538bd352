"""How vLLM serves an exported trial."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from analysis.export.markdown import code, escaped, fenced
from trainables.config import ModelConfig
from trainables.methods import Method

# What `--max-lora-rank` takes (vllm/config/lora.py, `MaxLoRARanks`); 16 unless it is given.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Settings of PEFT's that vLLM refuses, or of which it serves only some models' adapters.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules saved whole",
    "target_parameters": "adapted experts",
}


def serving(
    name: str, model: ModelConfig, method: Method, adapter: Mapping[str, Any] | None
) -> str:
    """The command as Markdown, with what to know about it.

    Args:
        name: for requests to call an adapter by.
        model: the base.
        method: that it was trained by.
        adapter: content of `adapter_config.json`; None of a model that is whole.
    """
    trusts = ["--trust-remote-code"] if model.trust_remote_code else []
    # Else vLLM takes that of the files, or rounds fp32 to 16 bits.
    dtype, is_fp32 = ["--dtype", model.dtype], model.dtype == "float32"
    whole = [*trusts, *(dtype if is_fp32 else [])]
    if adapter is None:
        return _command("PATH", *whole)
    if reason := _why_not_served(method, adapter):
        refused = f"vLLM may refuse this adapter ({reason})"
        if not method.merges:
            return f"{refused}, and it cannot be merged: load it as above."
        return f"{refused}: export the trial with `--merge`, then\n\n{_command('PATH', *whole)}"
    base, revision = adapter["base_model_name_or_path"], adapter["revision"]
    options = [
        *trusts,
        *(["--revision", revision] if revision else []),
        *(["--quantization", "bitsandbytes"] if model.load_in_4bit else []),
        *(["--tokenizer", "PATH"] if model.has_own_tokenizer else []),
        *([] if is_fp32 else dtype),
        "--enable-lora",
        *("--max-lora-rank", str(_max_rank(adapter))),
        *("--lora-modules", f"{name}=PATH"),
    ]
    return f"{_command(base, *options)}\n\nRequests name the model {code(name)}."


def _command(*arguments: str) -> str:
    return fenced(shlex.join(["vllm", "serve", *arguments]), "sh")


def _why_not_served(method: Method, adapter: Mapping[str, Any]) -> str:
    """Why vLLM may refuse it; empty if it does not."""
    if not method.served_by_vllm:
        return f"it serves LoRA, not {escaped(method.title)}"
    reasons = [reason for setting, reason in _REFUSED.items() if adapter.get(setting)]
    if _max_rank(adapter) is None:
        reasons.append(f"a rank above {_RANKS[-1]}")
    return ", ".join(reasons)


def _max_rank(adapter: Mapping[str, Any]) -> int | None:
    """The smallest that vLLM takes and that has room for the adapter."""
    return next((rank for rank in _RANKS if rank >= adapter["r"]), None)
