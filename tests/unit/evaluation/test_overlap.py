"""Warnings of items and held-out samples that are also trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_tokenizer import of_bytes

from trainables.config import DataConfig
from trainables.data.dataset import tokenize
from trainables.evaluation.data_warnings import overlap_warnings
from trainables.evaluation.task_loading import question_texts

PROMPT = "Question: {{ q }}\nAnswer:"
CHAT = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "Why?"},
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": "So."},
]


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def counts(data: DataConfig, *items: str) -> list[str]:
    """The beginnings of the warnings where a task `t` asks these items."""
    tokenized = tokenize(data, of_bytes("qwen2_5"), seed=0)
    warnings = overlap_warnings(tokenized, {"t": [{item} for item in items]})
    return [warning.partition(" ask ")[0].partition(" are ")[0] for warning in warnings]


@pytest.mark.parametrize(
    ("items", "warnings"),
    [
        (["Question: Why? \n Answer:", "Question: Who?\nAnswer:"], ["1 of 2 items of t"]),
        (["Question: When?\nAnswer:", "Why?"], []),  # another prompt
        (["", " "], []),
    ],
)
def test_items_that_ask_what_is_trained_on_are_counted(
    items: list[str], warnings: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"q": "Why?", "a": "So."}, {"q": "How?", "a": "So."}])
    data = DataConfig(path=path, prompt=PROMPT, completion=" {{ a }}", validation_fraction=0)
    assert counts(data, *items) == warnings


@pytest.mark.parametrize(("answers", "warnings"), [("last", []), ("all", ["1 of 1 items of t"])])
def test_a_chat_asks_in_the_user_s_turn_before_what_is_learned(
    answers: str, warnings: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"turns": CHAT}])
    fields = {"messages": "turns", "answers": answers, "validation_fraction": 0}
    data = DataConfig.model_validate({"path": path, **fields})
    assert counts(data, "Why?") == ["1 of 1 items of t"]
    assert counts(data, "Who?") == warnings


def test_items_that_ask_what_is_replayed_are_counted_and_what_is_held_out_is_not(
    tmp_path: Path,
) -> None:
    """One sample is replayed, the first of a chat's two."""
    general = write(tmp_path / "general.jsonl", [{"turns": CHAT}])
    replay = {"path": general, "messages": "turns", "answers": "all"}
    held_out = write(tmp_path / "held_out.jsonl", [{"prompt": "How?", "completion": "So."}])
    path = write(tmp_path / "rows.jsonl", [{"prompt": "When?", "completion": "Now."}])
    fields = {"validation_path": held_out, "replay": {**replay, "share": 0.5}}
    data = DataConfig.model_validate({"path": path, **fields})
    assert counts(data, "Why?", "How?", "Who?") == ["1 of 3 items of t"]


def test_held_out_samples_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    row, other = {"prompt": "Why?", "completion": "So."}, {"prompt": "Why?", "completion": "No."}
    held_out = write(tmp_path / "held_out.jsonl", [row, row, other])
    data = DataConfig(path=write(tmp_path / "rows.jsonl", [row]), validation_path=held_out)
    assert counts(data) == ["2 of 3 held-out samples"]
    repeated = write(tmp_path / "repeated.jsonl", [row] * 10)
    assert counts(DataConfig(path=repeated, validation_fraction=0.2)) == ["2 of 2 held-out samples"]


def test_an_item_asks_its_prompt_and_the_texts_in_it() -> None:
    document = {"question": "Why?", "target": "So.", "choices": ["So."], "answer": 0}
    task = SimpleNamespace(doc_to_text=lambda document: f"Q: {document['question']}")
    assert question_texts(task, document) == {"Why?", "Q: Why?"}


@pytest.mark.parametrize("ask", [lambda document: 1, lambda document: document["absent"]])
def test_an_item_whose_prompt_is_no_text_asks_nothing(ask: Any) -> None:
    assert question_texts(SimpleNamespace(doc_to_text=ask), {"question": "Why?"}) == set()
