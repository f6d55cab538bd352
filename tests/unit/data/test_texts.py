"""Plain text for continued pretraining: cut to samples, with the loss on all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import faults
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainables.config import DataConfig
from trainables.data.chats import Example
from trainables.data.dataset import IGNORED_LABEL, _pieces, tokenize
from trainables.data.rows import count_samples, row_examples
from trainables.evaluation.drift import kl_context


class Characters:
    """A tokenizer with one token a character."""

    eos_token_id = 0
    bos_token = bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


@given(st.text("abc\0", max_size=30), st.integers(2, 12))
def test_every_token_but_the_first_is_learned_once(text: str, length: int) -> None:
    pieces, beginning = _pieces(Characters(), text, length)
    assert all(2 <= len(piece["input_ids"]) <= length for piece in pieces)
    assert all(piece["labels"] == [IGNORED_LABEL, *piece["input_ids"][1:]] for piece in pieces)
    learned = [label for piece in pieces for label in piece["labels"][1:]]
    assert learned == [*map(ord, text.removesuffix("\0")), 0][1:]  # which has its end once
    assert all(len(piece["input_ids"]) == length for piece in pieces[:-1])
    assert text.startswith(beginning.rstrip("\0"))
    assert len(beginning) <= max(1, length // 2)


def test_texts_have_their_beginning_and_end_as_in_the_pretraining(
    tokenizer: Any, tmp_path: Path
) -> None:
    texts = ["relay 1 5 18 = 2", "max 4 7"]
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(f"{json.dumps({'body': text})}\n" for text in [*texts, "", " \n", None])
    )
    data = DataConfig(path=str(file), text="body", validation_fraction=0)
    found = tokenize(data, tokenizer, seed=0)
    whole = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert sorted(sample["input_ids"] for sample in found.train) == sorted(whole)
    assert {ids[0] for ids in whole} == {tokenizer.bos_token_id}
    assert (found.skipped, len(found.prompts)) == (0, 2)
    for prompt in found.prompts:
        ids = kl_context(tokenizer, prompt)
        assert any(text.startswith(prompt) for text in texts)
        assert any(text[: len(ids)] == ids and 2 <= len(ids) < len(text) for text in whole)


def test_no_text_is_in_both_splits(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps({'text': letter * 50})}\n" for letter in "abcdefgh"))
    data = DataConfig(path=str(file), text="text", validation_fraction=0.25, max_length=8)
    found = tokenize(data, Characters(), seed=0)
    splits = [{s["input_ids"][0] for s in part} for part in (found.train, found.validation)]
    assert (len(splits[0]), len(splits[1]), splits[0] & splits[1]) == (6, 2, set())
    assert len(found.train) == 6 * 8  # of 50 tokens and the end, 7 in each that are learned
    assert [len(set(prompt)) for prompt in found.prompts] == [1] * 8


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([{"text": "a"}, {"body": "b"}], "names text, absent from row 2 of rows.jsonl"),
        ([{"text": ["a"]}, {"text": "a"}], "must name a text, got a list in row 1 of rows.jsonl"),
        ([{"text": " \n"}, {"text": None}], "names text, blank in all rows of rows.jsonl"),
    ],
)
def test_rows_without_a_text_are_refused(rows: list[dict[str, Any]], rule: str) -> None:
    (fault,) = faults(row_examples, DataConfig(path="rows.jsonl", text="text"), rows)
    assert fault.field == "data.text"
    assert fault.rule.startswith(rule)


def test_chats_that_are_named_as_texts_are_told_where_to_name_them_once() -> None:
    chat = {"turns": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (fault,) = faults(row_examples, DataConfig(path="rows.jsonl", text="turns"), [chat] * 9)
    assert fault.rule == "must name a text, got a list in row 1 of rows.jsonl"
    assert fault.remedy.endswith("if they are chats name them by data.messages")


def test_how_many_samples_texts_make_is_not_guessed() -> None:
    assert count_samples(DataConfig(path="x", text="text"), [[Example("", "a")]]) is None


@pytest.mark.parametrize(
    "other",
    [{"messages": "m"}, {"prompt": "{{ q }}"}, {"completion": "a"}, {"chat_template": True}],
)
def test_a_text_has_neither_prompt_nor_turns(other: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give text, or messages, or prompt and completion"):
        DataConfig(path="x", text="text", **other)
