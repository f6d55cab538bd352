"""Has DeepSpeed read a user's own settings for it, before the first trial."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from trainables.data.chats import without_nulls
from trainables.errors import Fault, UserError, first_line

# The trainer fills these in; DeepSpeed accepts `auto` for none of them.
_FILLED_IN = {
    "train_batch_size": 1,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
}


def check_deepspeed_settings(settings: dict[str, Any]) -> None:
    """Check that DeepSpeed accepts these settings. It ignores unknown keys at the top level.

    Raises:
        UserError: it refuses a key or a value.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    from trainables.training.full_sft import deepspeed_process

    field = "deepspeed.config"
    try:
        with deepspeed_process():
            DeepSpeedConfig({**without_nulls(settings), **_FILLED_IN})
    except ValidationError as error:
        raise UserError(
            [
                Fault(
                    field,
                    f"{error.title} refuses {'.'.join(map(str, detail['loc']))}: "
                    f"{detail['msg']}, got {detail['input']!r}",
                )
                for detail in error.errors()
            ]
        ) from error
    except Exception as error:  # a section of another type fails anywhere in its code
        rule = f"DeepSpeed cannot read it: {type(error).__name__}: {first_line(error)}"
        raise UserError([Fault(field, rule, "see DeepSpeed's documentation")]) from error
