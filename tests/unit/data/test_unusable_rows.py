"""Rows that cannot be learned are left out and counted, unless they are most of the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_tokenizer import of_bytes
from faults import faults

from trainables.config import DataConfig, EvalSuite
from trainables.data.dataset import TokenizedData, tokenize
from trainables.data.rows import count_samples, load_rows, row_examples
from trainables.errors import Fault
from trainables.evaluation.data_warnings import data_warnings

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('no system turn here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def chat(*contents: str | None, **more: Any) -> list[dict[str, Any]]:
    """Turns of a user and an assistant, by turns; the last one with more."""
    turns: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]
    return [*turns[:-1], turns[-1] | more]


GOOD = chat("q", "a")
SYSTEM = [*chat("q", "a"), {"role": "system", "content": "s"}, *chat("r", "b")]
ENDLESS = chat("q", "a", "thanks")
REFUSED = "the model's chat template refuses the turns user, assistant, system, user of 'q': no sys"
UNUSABLE = {
    "ends with a user": (ENDLESS, "must end with an answer of the role assistant"),
    "blank": (chat("q", " \n", reasoning_content=""), "the answers are blank or marked"),
    "null": (chat("q", None), "must be turns of a `role` and a `content`"),
    "no turns": (["q", "a"], "must have turns that are a list of objects"),
    "no call": (
        [{"from": "human", "value": "q"}, {"from": "function_call"}],
        "must have a function_call in JSON, got 'None'",
    ),
    "refused": (SYSTEM, REFUSED),
    "not written": (chat("q", "a", tool_calls=[CALL]), "the model's chat template writes no tool_"),
}


def chats(folder: Path, turns: Sequence[object], name: str = "rows.jsonl") -> str:
    file = folder / name
    file.write_text("".join(f"{json.dumps({'messages': each})}\n" for each in turns))
    return str(file)


def config(path: str, **fields: Any) -> DataConfig:
    return DataConfig(**{"path": path, "messages": "messages", "validation_fraction": 0} | fields)


def refused(data: DataConfig, template: str = TEMPLATE) -> Fault:
    (fault,) = faults(tokenize, data, of_bytes(template), 0)
    return fault


def warnings(tokenized: TokenizedData, data: DataConfig) -> list[str]:
    base = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    suite = EvalSuite(in_domain=("task",), chat_template=True)
    return data_warnings(base, of_bytes(TEMPLATE), tokenized, data, suite)


@pytest.mark.parametrize(("turns", "rule"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_row_is_left_out_counted_and_reported(
    turns: object, rule: str, tmp_path: Path
) -> None:
    path = chats(tmp_path, [GOOD, GOOD, turns, GOOD, turns])
    found = tokenize(config(path), of_bytes(TEMPLATE), seed=0)
    alone = tokenize(config(chats(tmp_path, [GOOD] * 3, "good.jsonl")), of_bytes(TEMPLATE), seed=0)
    assert found.train == alone.train
    assert (found.unusable, found.skipped) == (2, 0)
    assert found.first_unusable.startswith(rule)
    (warning,) = warnings(found, config(path))
    assert warning.startswith(
        f"2 row(s) of the data cannot be learned and were left out; the first: {rule}"
    )
    assert warning.endswith(f": row 3 of {path}")


@pytest.mark.parametrize("turns", [ENDLESS, SYSTEM])
def test_where_most_rows_are_unusable_they_are_refused(turns: object, tmp_path: Path) -> None:
    path = chats(tmp_path, [GOOD, turns, turns])
    fault = refused(config(path))
    assert fault.field == "data.messages"
    assert fault.rule.endswith(f": row 2 of {path}; 2 of 3 rows (67%) cannot be learned")
    assert tokenize(config(path, limit=2), of_bytes(TEMPLATE), seed=0).unusable == 1


@pytest.mark.parametrize("turns", [SYSTEM, ENDLESS])
def test_unusable_rows_to_replay_are_left_out_too(turns: object, tmp_path: Path) -> None:
    general = chats(tmp_path, [turns, GOOD, GOOD], "general.jsonl")
    own = chats(tmp_path, [GOOD] * 9)
    data = config(own, replay={"path": general, "share": 0.5, "messages": "messages"})
    found = tokenize(data, of_bytes(TEMPLATE), seed=0)
    assert (found.replayed, found.replay_distinct, found.replay_unusable) == (9, 2, 1)
    assert (found.unusable, found.first_unusable) == (0, "")
    (warning, _) = warnings(found, data)
    assert warning.startswith("1 row(s) drawn from data.replay cannot be learned and were left out")
    assert warning.endswith(f": row 1 of {general}")
    chats(tmp_path, [turns, turns, GOOD], "general.jsonl")
    fault = refused(data)
    assert fault.field == "data.replay.messages"
    assert fault.rule.endswith("2 of 3 rows (67%) cannot be learned")


def pairs(folder: Path, answers: Sequence[str], name: str = "rows.jsonl") -> str:
    file = folder / name
    file.write_text("".join(f"{json.dumps({'q': 'q', 'a': a})}\n" for a in answers))
    return str(file)


def template_config(path: str, **fields: Any) -> DataConfig:
    templates = {"prompt": "{{ q }}", "completion": " {{ a }}"}
    return config(path, messages=None, **templates | fields)


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_blank_completion_is_unusable_like_a_chat(is_chat: bool, tmp_path: Path) -> None:
    """It would be learned as the end alone: to answer nothing."""
    data = template_config(pairs(tmp_path, ["a", "", "b", " \n"]), chat_template=is_chat)
    alone = template_config(pairs(tmp_path, ["a", "b"], "good.jsonl"), chat_template=is_chat)
    found = tokenize(data, of_bytes(TEMPLATE), seed=0)
    assert found.train == tokenize(alone, of_bytes(TEMPLATE), seed=0).train
    assert (found.unusable, found.skipped) == (2, 0)
    assert found.first_unusable == f"the completion is blank: row 2 of {data.path}"
    assert any(found.first_unusable in warning for warning in warnings(found, data))
    rows = load_rows(data)
    assert count_samples(data, row_examples(data, rows)) == 2
    text = DataConfig(path=data.path, text="a")
    assert count_samples(text, row_examples(text, rows)) is None
