"""Answers within chats, which `data.answers: last` has as context alone, are told of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_tokenizer import of_bytes

from trainables.config import DataConfig, EvalSuite
from trainables.data.chats import chat_examples
from trainables.data.dataset import tokenize
from trainables.evaluation.data_warnings import data_warnings


def chats(folder: Path, answers: Sequence[int], name: str = "rows.jsonl") -> str:
    """Chats with so many answers each, all of which a system's turn and a greeting precede."""
    file = folder / name
    greeting = [{"role": role, "content": "Hello."} for role in ("system", "assistant")]
    turns = [{"role": role, "content": "abc"} for role in ("user", "assistant")]
    rows = [{"messages": greeting + turns * count} for count in answers]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def told(path: str, **fields: Any) -> tuple[int, list[str]]:
    """How many answers are not learned, and what is told of these."""
    fixed = {"messages": "messages", "validation_fraction": 0, "max_length": 10_000}
    data = DataConfig(**{"path": path} | fixed | fields)
    tokenizer = of_bytes("qwen2_5")
    found = tokenize(data, tokenizer, seed=0)
    base = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    suite = EvalSuite(in_domain=("task",), chat_template=True)
    warnings = data_warnings(base, tokenizer, found, data, suite)
    return found.unlearned, [text for text in warnings if "answers" in text]


OTHERS = "data.answers: all learns the others too"
WARNING = f"3 of 9 answers are learned; {OTHERS}"


@pytest.mark.parametrize(
    ("answers", "unlearned", "warnings"),
    [
        ([7, 1, 1], 6, [WARNING]),
        ([2, 2, 2], 3, [f"3 of 6 answers are learned; {OTHERS}"]),
        ([2, 1, 1, 1], 1, [f"4 of 5 answers are learned; {OTHERS}"]),
        ([1, 1, 0], 0, []),
    ],
)
def test_that_earlier_answers_are_not_learned_is_told(
    answers: list[int], unlearned: int, warnings: list[str], tmp_path: Path
) -> None:
    assert told(chats(tmp_path, answers)) == (unlearned, warnings)


def test_where_all_answers_are_learned_nothing_is_told(tmp_path: Path) -> None:
    assert told(chats(tmp_path, [7, 1, 1]), answers="all") == (0, [])


def test_a_blank_answer_among_all_is_told_of_and_costs_none_of_the_others(tmp_path: Path) -> None:
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(("a", " ", "b", "c", "d", "e", "f", ""))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": turns}))
    assert told(str(file), answers="all") == (2, ["2 of 4 answers are blank, and not learned"])
    examples = chat_examples({"messages": turns}, "messages", "all")
    assert [(one.prompt, one.answer) for one in examples] == [
        (turns[:3], turns[3]),
        (turns[:5], turns[5]),
    ]


def test_chats_that_are_too_long_or_held_out_do_not_count(tmp_path: Path) -> None:
    path = chats(tmp_path, [7, 1, 1, 40])
    held_out = chats(tmp_path, [9, 9], "held_out.jsonl")
    assert told(path, max_length=900, validation_path=held_out) == (6, [WARNING])


def test_of_data_to_replay_nothing_is_told(tmp_path: Path) -> None:
    replay = {"path": chats(tmp_path, [9], "general.jsonl"), "share": 0.5, "messages": "messages"}
    assert told(chats(tmp_path, [7, 1, 1]), replay=replay) == (6, [WARNING])
    assert told(chats(tmp_path, [1, 1, 1]), replay=replay) == (0, [])
