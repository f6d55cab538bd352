"""Tokens that the model has no embedding of: named before a trial is spent.

A GPU says of one only that an assertion failed, and is then lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainables.data.dataset import TokenizedData
from trainables.errors import Fault, UserError


def check_data(base: Any, tokenizer: Any, tokenized: TokenizedData) -> None:
    """Check that every token to train on is embedded.

    Raises:
        UserError: the data have one that is not, or are padded with one.
    """
    if _embeds_all(base, tokenizer):
        return
    samples = (*tokenized.train, *tokenized.validation)
    used = {token for sample in samples for token in sample["input_ids"]}
    _check_embedded(base, tokenizer, max(used | {tokenizer.pad_token_id or 0}))


@contextmanager
def only_embedded(base: Any, tokenizer: Any) -> Iterator[None]:
    """Within it, each pass of the base is checked to take embedded tokens alone.

    Where all are embedded there is nothing to look for, which would wait for a GPU each time.

    Raises:
        UserError: a task or a text has one that is not.
    """
    if _embeds_all(base, tokenizer):
        yield
        return

    def check(_: Any, inputs: tuple[Any, ...]) -> None:
        for ids in inputs:
            _check_embedded(base, tokenizer, int(ids.max()))

    with base.get_input_embeddings().register_forward_pre_hook(check):
        yield


def _embeds_all(base: Any, tokenizer: Any) -> bool:
    return len(tokenizer) <= _embedded(base)


def _embedded(base: Any) -> int:
    """How many tokens have an embedding."""
    return int(base.get_input_embeddings().weight.shape[0])


def _check_embedded(base: Any, tokenizer: Any, largest: int) -> None:
    """Check the largest of some tokens.

    Raises:
        UserError: it is not embedded.
    """
    embedded = _embedded(base)
    if largest >= embedded:
        token = tokenizer.convert_ids_to_tokens(largest)
        rule = f"token {largest} ({token}) is used, and the model embeds {embedded} tokens"
        remedy = "call its resize_token_embeddings, or take the tokenizer that it came with"
        raise UserError([Fault("model.name", rule, remedy)])
