"""Which tokens and positions a model has embeddings of.

Beyond them a GPU says only that an assertion failed, and is then lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import Embedding

from trainables.data.dataset import TokenizedData
from trainables.errors import Fault, UserError

_MOST_BEFORE = 8  # rows of a table before the first position's: OPT's has two


def count_positions(model: Any) -> int | None:
    """How many positions a model has embeddings of; None if it computes them for any number."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    tables = [
        part.num_embeddings
        for part in model.get_decoder().modules()
        if isinstance(part, Embedding) and part is not tokens
    ]
    if stated and any(0 <= rows - stated <= _MOST_BEFORE for rows in tables):
        return int(stated)
    return None


def rotations(config: Any) -> list[Mapping[str, Any]]:
    """The settings of a model's rotary positions: one, or one for each type of its layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [of_type for of_type in rope.values() if isinstance(of_type, Mapping)] or [rope]


def check_samples(base: Any, tokenizer: Any, tokenized: TokenizedData) -> None:
    """Check that the base has embeddings of every sample's tokens and positions.

    Raises:
        UserError: it has not.
    """
    samples = [sample["input_ids"] for sample in (*tokenized.train, *tokenized.validation)]
    longest, positions = max(map(len, samples)), count_positions(base)
    if positions is not None and longest > positions:
        rule = f"the model reads {positions} tokens at most, and a sample has {longest}"
        remedy = f"set it to {positions}, or take a model that reads longer texts"
        raise UserError([Fault("data.max_length", rule, remedy)])
    embedded = int(base.get_input_embeddings().weight.shape[0])
    largest = max(tokenizer.pad_token_id or 0, *map(max, samples))
    if largest >= embedded:
        token = tokenizer.convert_ids_to_tokens(largest)
        rule = f"token {largest} ({token}) is used, and the model embeds {embedded} tokens"
        remedy = "call its resize_token_embeddings, or take the tokenizer that it came with"
        raise UserError([Fault("model.name", rule, remedy)])
