"""Keeps what libraries say of themselves off the terminal of a command that loads models."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Loggers of what PEFT loads if it is installed, used or not.
_TALKATIVE = ("DeepSpeed", "bitsandbytes.backends.cpu.ops")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without progress bars of loading, deprecations, and greetings of what PEFT loads."""
    from transformers.utils import logging as transformers

    had_bars = transformers.is_progress_bar_enabled()
    transformers.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    were_disabled = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, was_disabled in zip(loggers, were_disabled, strict=True):
            logger.disabled = was_disabled
        if had_bars:
            transformers.enable_progress_bar()
