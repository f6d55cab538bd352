"""Warnings about data that train something else than the user may expect."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_tokenizer import of_bytes

from trainables.config import DataConfig, EvalSuite
from trainables.data.dataset import tokenize
from trainables.evaluation.data_warnings import data_warnings

Row = dict[str, Any]
BASE = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))


def jsonl(folder: Path, rows: list[Row], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(folder / name)


def pairs(*texts: tuple[str, str]) -> list[Row]:
    return [{"prompt": prompt, "completion": completion} for prompt, completion in texts]


def warnings(path: str, tokenizer: Any, suite: Row | None = None, **fields: Any) -> list[str]:
    data = DataConfig(**{"path": path, "validation_fraction": 0, "max_length": 10_000} | fields)
    found = tokenize(data, tokenizer, seed=0)
    return list(data_warnings(BASE, tokenizer, found, data, EvalSuite(**(suite or {}))))


CHAT = {"chat_template": True}
BRIEF = "Be brief."


@pytest.mark.parametrize(
    ("data", "suite", "fact"),
    [
        ({}, {}, None),
        (CHAT, CHAT, None),
        (CHAT, {}, "eval.chat_template is False"),
        ({}, CHAT, "eval.chat_template is True"),
        (CHAT | {"system": BRIEF}, CHAT | {"system_instruction": BRIEF}, None),
        (CHAT | {"system": BRIEF}, CHAT, f"data.system is {BRIEF!r}"),
        (CHAT, CHAT | {"system_instruction": BRIEF}, "data.system is None"),
        (CHAT | {"system": "{{ prompt }}"}, CHAT | {"system_instruction": BRIEF}, None),
        (CHAT, {"in_domain": ()}, None),  # no task asks
    ],
)
def test_tasks_that_ask_in_another_way_are_reported(
    data: Row, suite: Row, fact: str | None, tmp_path: Path
) -> None:
    path = jsonl(tmp_path, pairs(("q", "a")))
    found = warnings(path, of_bytes("qwen2_5"), {"in_domain": ("task",)} | suite, **data)
    asked = [text for text in found if "the tasks ask" in text]
    assert len(asked) == (fact is not None)
    assert all(str(fact) in text for text in asked)


@pytest.mark.parametrize(
    ("counts", "fact"),
    [([7, 1, 1], "3 of 9 answers are learned"), ([2, 1, 1, 1], "4 of 5"), ([1, 1], None)],
)
def test_answers_that_are_context_alone_are_reported(
    counts: list[int], fact: str | None, tmp_path: Path
) -> None:
    turns = [{"role": role, "content": "abc"} for role in ("user", "assistant")]
    greeting = [{"role": "assistant", "content": "Hello."}]
    path = jsonl(tmp_path, [{"messages": greeting + turns * count} for count in counts])
    fields = {"messages": "messages"}
    suite = {"in_domain": ("task",)} | CHAT
    found = [t for t in warnings(path, of_bytes("qwen2_5"), suite, **fields) if "answers" in t]
    assert len(found) == (fact is not None)
    assert all(text.startswith(str(fact)) and "data.answers: all" in text for text in found)
    fields["answers"] = "all"
    assert "answers" not in str(warnings(path, of_bytes("qwen2_5"), suite, **fields))
