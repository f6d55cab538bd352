"""How long a text a model can read: one that embeds positions has a table of them.

Beyond its end a GPU says only that an assertion failed, and is then lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.nn import Embedding

from trainables.errors import Fault, UserError
from trainables.inputs.data import TokenizedData

_MOST_BEFORE = 8  # rows of a table before the first position's: OPT's has two


def positions_of(model: Any) -> int | None:
    """How many positions a model has embeddings of; None if it computes them for any number."""
    config = model.config.get_text_config()
    if config.model_type == "mpt":  # which computes its biases for so many at each pass
        return int(config.max_seq_len)
    stated = getattr(config, "max_position_embeddings", None)
    rows = _rows_of_tables(model.get_decoder(), model.get_input_embeddings())
    if stated and any(0 <= count - stated <= _MOST_BEFORE for count in rows):
        return int(stated)
    return None


def _rows_of_tables(decoder: Any, tokens: Any) -> Iterator[int]:
    """Rows of all tables that may be of positions, of a model's text alone."""
    for part in decoder.modules():
        if isinstance(part, Embedding) and part is not tokens:
            yield part.num_embeddings
    for name, buffer in decoder.named_buffers():
        # GPT-J's `embed_positions`, CTRL's `pos_encoding`; `cos_cached` is one that may grow.
        if "pos" in name.rpartition(".")[2] and buffer.dim() == 2:
            yield buffer.shape[0]


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
