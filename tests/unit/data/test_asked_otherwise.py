"""Warnings that the tasks ask in another way than is trained."""

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

ROW = {
    "prompt": "q",
    "completion": "a",
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
}


def warnings(folder: Path, data: dict[str, Any], suite: dict[str, Any]) -> list[str]:
    file = folder / "rows.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n")
    config = DataConfig(path=str(file), validation_fraction=0, **data)
    tokenizer = of_bytes("qwen2_5")
    found = tokenize(config, tokenizer, seed=0)
    base = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    suite_config = EvalSuite(**{"in_domain": ("task",)} | suite)
    told = data_warnings(base, tokenizer, found, config, suite_config)
    return [text for text in told if "the tasks ask" in text]


CHAT = {"chat_template": True}
BRIEF = "Be brief."


@pytest.mark.parametrize(
    ("data", "suite", "told"),
    [
        ({}, {}, None),
        (CHAT, CHAT, None),
        (CHAT, {}, "trained are chats, and eval.chat_template is False: the tasks ask in plain"),
        ({}, CHAT, "trained are plain text, and eval.chat_template is True: the tasks ask in a"),
        (CHAT | {"system": BRIEF}, CHAT | {"system_instruction": BRIEF}, None),
        (CHAT | {"system": BRIEF}, CHAT, f"data.system is {BRIEF!r}, and eval.system_instruction"),
        (CHAT, CHAT | {"system_instruction": BRIEF}, "data.system is None, and eval.system_instr"),
        (CHAT | {"system": "{{ prompt }}"}, CHAT | {"system_instruction": BRIEF}, None),
        # Chats have turns of their own, unless one is given to all.
        ({"messages": "messages"}, CHAT | {"system_instruction": BRIEF}, None),
        ({"messages": "messages", "system": BRIEF}, CHAT, f"data.system is {BRIEF!r}, and eval."),
    ],
)
def test_what_is_asked_otherwise_is_told(
    data: dict[str, Any], suite: dict[str, Any], told: str | None, tmp_path: Path
) -> None:
    found = warnings(tmp_path, data, suite)
    assert [text[: len(told or "")] for text in found] == ([told] if told else [])


@pytest.mark.parametrize(
    ("data", "suite"), [(CHAT, {}), ({}, CHAT), (CHAT | {"system": BRIEF}, CHAT)]
)
def test_where_there_are_no_tasks_none_asks_otherwise(
    data: dict[str, Any], suite: dict[str, Any], tmp_path: Path
) -> None:
    assert warnings(tmp_path, data, suite)
    assert warnings(tmp_path, data, suite | {"in_domain": ()}) == []
    assert warnings(tmp_path, data, suite | {"in_domain": (), "ood": ("task",)})
