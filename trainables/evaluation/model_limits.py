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


def length_warnings(base: Any, tokenized: TokenizedData) -> list[str]:
    """A warning if samples are longer than the texts that the base was made for."""
    made_for = _length_made_for(base.config.get_text_config())
    lengths = [len(s["input_ids"]) for s in (*tokenized.train, *tokenized.validation)]
    longer = sum(length > made_for for length in lengths) if made_for else 0
    if not longer:
        return []
    return [
        f"{longer} of {len(lengths)} samples are longer than the {made_for} tokens that the model "
        f"was made for, up to {max(lengths)}: data.max_length: {made_for} keeps to them"
    ]


def _length_made_for(config: Any) -> int | None:
    """The longest text that a model was made for, if its configuration says so.

    Scaled positions reach further: some state the scaled length, others the original one.
    """
    stated = getattr(config, "max_position_embeddings", None)
    if not stated:
        return None
    scaled = [
        (rope.get("original_max_position_embeddings") or stated) * (rope.get("factor") or 1)
        for rope in rotations(config)
    ]
    return int(max(stated, *scaled))


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
