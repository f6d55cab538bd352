"""What is trained on and measured with at once is told of before it is trained on."""

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
from trainables.evaluation.task_loading import questions_of

HELD_OUT = (
    "held-out samples are also trained on, so the validation loss tells what is memorised: "
    "leave repeated rows out of the data"
)
PROMPT = "Question: {{ q }}\nAnswer:"
CHAT = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "Why?"},
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": "So."},
]


def written(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def told(data: DataConfig, *items: str) -> list[str]:
    """What is told where a task `t` asks these."""
    tokenized = tokenize(data, of_bytes("qwen2_5"), seed=0)
    return overlap_warnings(tokenized, {"t": [{item} for item in items]})


def of_items(count: int, items: int) -> str:
    return (
        f"{count} of {items} items of t ask word for word what is trained on, so their scores tell "
        "what is memorised: leave these rows out of the data"
    )


@pytest.mark.parametrize(
    ("items", "warnings"),
    [
        (["Question: Why? \n Answer:", "Question: Who?\nAnswer:"], [of_items(1, 2)]),
        (["Question: When?\nAnswer:", "Why?"], []),  # another prompt
        (["", " "], []),
    ],
)
def test_items_that_ask_what_is_trained_on_are_counted(
    items: list[str], warnings: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path / "rows.jsonl", [{"q": "Why?", "a": "So."}, {"q": "How?", "a": "So."}])
    data = DataConfig(path=path, prompt=PROMPT, completion=" {{ a }}", validation_fraction=0)
    assert told(data, *items) == warnings


def test_of_rows_without_a_prompt_no_item_asks(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"a": "So."}])
    data = DataConfig(path=path, prompt="", completion="{{ a }}", validation_fraction=0)
    assert told(data, "", "So.") == []


@pytest.mark.parametrize(("answers", "warnings"), [("last", []), ("all", [of_items(1, 1)])])
def test_of_a_chat_the_question_is_the_user_s_turn_before_what_is_learned(
    answers: str, warnings: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path / "rows.jsonl", [{"turns": CHAT}])
    fields = {"messages": "turns", "answers": answers, "validation_fraction": 0}
    data = DataConfig.model_validate({"path": path, **fields})
    assert told(data, "Why?") == [of_items(1, 1)]
    assert told(data, "Who?") == warnings


def test_items_that_ask_what_is_replayed_are_counted_and_what_is_held_out_is_not(
    tmp_path: Path,
) -> None:
    """One sample is replayed, the first of a chat's two."""
    general = written(tmp_path / "general.jsonl", [{"turns": CHAT}])
    replay = {"path": general, "messages": "turns", "answers": "all"}
    held_out = written(tmp_path / "held_out.jsonl", [{"prompt": "How?", "completion": "So."}])
    path = written(tmp_path / "rows.jsonl", [{"prompt": "When?", "completion": "Now."}])
    fields = {"validation_path": held_out, "replay": {**replay, "share": 0.5}}
    data = DataConfig.model_validate({"path": path, **fields})
    assert told(data, "Why?", "How?", "Who?") == [of_items(1, 3)]


def test_no_item_asks_what_a_text_holds(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"text": "Why?"}])
    assert told(DataConfig(path=path, text="text", validation_fraction=0), "Why?") == []


def test_held_out_samples_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    row, other = {"prompt": "Why?", "completion": "So."}, {"prompt": "Why?", "completion": "No."}
    held_out = written(tmp_path / "held_out.jsonl", [row, row, other])
    data = DataConfig(path=written(tmp_path / "rows.jsonl", [row]), validation_path=held_out)
    assert told(data) == [f"2 of 3 {HELD_OUT}"]
    repeated = written(tmp_path / "repeated.jsonl", [row] * 10)
    assert told(DataConfig(path=repeated, validation_fraction=0.2)) == [f"2 of 2 {HELD_OUT}"]


def test_what_an_item_asks_may_be_trained_on_with_another_prompt() -> None:
    document = {"question": "Why?", "target": "So.", "choices": ["So."], "answer": 0}
    task = SimpleNamespace(doc_to_text=lambda document: f"Q: {document['question']}")
    assert questions_of(task, document) == {"Why?", "Q: Why?"}


@pytest.mark.parametrize("ask", [lambda document: 1, lambda document: document["absent"]])
def test_an_item_whose_prompt_is_no_text_asks_nothing(ask: Any) -> None:
    assert questions_of(SimpleNamespace(doc_to_text=ask), {"question": "Why?"}) == set()
