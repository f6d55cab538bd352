"""How long a text a model can read: one that embeds positions has a table of them.

Beyond its end a GPU says only that an assertion failed, and is then lost.
"""

from __future__ import annotations

from typing import Any

from torch.nn import Embedding

from trainables.errors import Fault, UserError
from trainables.inputs.data import TokenizedData

_MOST_BEFORE = 8  # rows of a table before the first position's: OPT's has two


def positions_of(model: Any) -> int | None:
    """How many positions a model has embeddings of; None if it computes them for any number."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    parts = model.get_decoder().modules()  # of images there are tables, too
    tables = [part for part in parts if isinstance(part, Embedding) and part is not tokens]
    if stated and any(0 <= table.num_embeddings - stated <= _MOST_BEFORE for table in tables):
        return int(stated)
    return None


def check_lengths(base: Any, tokenized: TokenizedData) -> None:
    """Check that every sample is as short as the base can read.

    Raises:
        UserError: one is longer.
    """
    samples = (*tokenized.train, *tokenized.validation)
    longest = max(len(sample["input_ids"]) for sample in samples)
    positions = positions_of(base)
    if positions is not None and longest > positions:
        rule = f"the model reads {positions} tokens at most, and a sample has {longest}"
        remedy = f"set it to {positions}, or take a model that reads longer texts"
        raise UserError([Fault("data.max_length", rule, remedy)])
