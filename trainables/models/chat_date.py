"""The date that chat templates print, which must be the same for a base and every trial.

Some templates, such as those of Llama 3.2, SmolLM3 and gpt-oss, tell the model today's date. Trials
of another day would be asked other questions than the base that they are compared with.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from trainables.compat import transformers

CHAT_DATE = datetime(2024, 7, 26)


def freeze_chat_date() -> None:
    """Make it `CHAT_DATE` in all chat templates of this process."""
    transformers.freeze_chat_date(CHAT_DATE)


def chat_date_key(tokenizer: Any) -> dict[str, str]:
    """The date in a tokenizer's chats, for keys; empty if its template prints none."""
    prints = "strftime_now" in str(tokenizer.chat_template)
    return {"chat_date": CHAT_DATE.date().isoformat()} if prints else {}
