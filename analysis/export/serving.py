"""How vLLM serves an exported trial."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from trainables.config import TrialConfig

# What `--max-lora-rank` takes (vllm/config/lora.py, `MaxLoRARanks`); 16 unless it is given.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Settings of PEFT's that vLLM refuses, or of which it serves only some models' adapters.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules saved whole",
    "target_parameters": "adapted experts",
}


def serving(name: str, config: TrialConfig, adapter: Mapping[str, Any] | None) -> str:
    """The command as Markdown, with what to know about it.

    Args:
        name: for requests to call an adapter by.
        config: of the trial.
        adapter: content of `adapter_config.json`; None of a model that is whole.
    """
    trusts = ["--trust-remote-code"] if config.model.trust_remote_code else []
    if adapter is None:
        return _command("PATH", *trusts)
    if reason := _reason_against(config, adapter):
        merged = f"vLLM may refuse this adapter ({reason}): export the trial with `--merge`, then"
        return f"{merged}\n\n{_command('PATH', *trusts)}"
    base, revision = adapter["base_model_name_or_path"], adapter["revision"]
    options = [
        *trusts,
        *(["--revision", revision] if revision else []),
        *(["--tokenizer", "PATH"] if config.model.has_own_tokenizer else []),
        "--enable-lora",
        *("--max-lora-rank", str(_max_rank(config))),
        *("--lora-modules", f"{name}=PATH"),
    ]
    return f"{_command(base, *options)}\n\nRequests name the model `{name}`."


def _command(*arguments: str) -> str:
    return f"```sh\n{shlex.join(['vllm', 'serve', *arguments])}\n```"


def _reason_against(config: TrialConfig, adapter: Mapping[str, Any]) -> str | None:
    reasons = [reason for setting, reason in _REFUSED.items() if adapter.get(setting)]
    if _max_rank(config) is None:
        reasons.append(f"a rank above {_RANKS[-1]}")
    return ", ".join(reasons) or None


def _max_rank(config: TrialConfig) -> int | None:
    """The smallest that vLLM takes and that has room for the adapter."""
    assert config.lora is not None  # noqa: S101 - an adapter's trial has it
    return next((rank for rank in _RANKS if rank >= config.lora.rank), None)
