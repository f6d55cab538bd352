"""Transformers, tried with 5.21 to 5.24."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils


def freeze_chat_date(date: datetime) -> None:
    """Make all chat templates of this process print this date, with `strftime_now`.

    Why: trials of another day would be asked other questions than the base that they are compared
    with, and templates take the date from no argument. Upstream: not reported.
    """

    class ChatDate(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return date

    vars(chat_template_utils)["datetime"] = ChatDate


def attention_kind(config: Any) -> str:
    """How a loaded model computes attention, such as `sdpa`.

    Why: the configuration's public argument is not kept under a public name. Upstream: none.
    """
    return str(config._attn_implementation)


def has_adapter(model: Any) -> bool:
    """Whether `from_pretrained` has loaded an adapter together with the model.

    Why: it does so unasked where a folder holds one, and trials would take it off. Upstream: none.
    """
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def recomputes_by_hook(model: Any) -> bool:
    """Whether any layer recomputes its activations through Transformers' own function.

    Why: a model's own code may recompute in a way that takes no contexts. Upstream: none.
    """
    return any("_gradient_checkpointing_func" in vars(module) for module in model.modules())


def use_one_gpu(arguments: Any) -> None:
    """Have a trainer take at most one of the GPUs that its process sees.

    Why: it would take all of them, and a micro-batch for each. `CUDA_VISIBLE_DEVICES` comes too
    late in a process that is kept for the next trial. Upstream: none.
    """
    arguments._n_gpu = min(1, arguments.n_gpu)


def continue_logging_at(trainer: Any, step: int) -> None:
    """Tell a resumed trainer that everything up to a step is logged.

    Why: its first loss would be spread over all steps since the start. Upstream: none.
    """
    trainer._globalstep_last_logged = step
