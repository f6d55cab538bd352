"""Keeps what libraries say of themselves off the terminal of a command that loads models."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without progress bars of loading, deprecations, and DeepSpeed's greeting."""
    from transformers.utils import logging as transformers

    had_bars = transformers.is_progress_bar_enabled()
    transformers.disable_progress_bar()
    deepspeed = logging.getLogger("DeepSpeed")  # which PEFT loads if it is installed
    was_disabled, deepspeed.disabled = deepspeed.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        deepspeed.disabled = was_disabled
        if had_bars:
            transformers.enable_progress_bar()
