"""The token that ends the turns of a chat."""

from __future__ import annotations

from typing import Any

from trainables.inputs.data import Sample
from trainables.inputs.model import ends


def unheeded_end(base: Any, tokenizer: Any, chat: Sample) -> str | None:
    """The special token that a chat ends in, if generation by the base would not stop there."""
    written = (token for token in reversed(chat["input_ids"]) if tokenizer.decode([token]).strip())
    end = next(written)  # some templates put a line break after it
    added = tokenizer.added_tokens_decoder.get(end)
    if added is None or not added.special or end in (tokenizer.eos_token_id, *ends(base)):
        return None
    return str(added.content)
