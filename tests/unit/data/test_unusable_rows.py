"""Rows that cannot be learned are left out and counted, unless they are most of the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from byte_tokenizer import of_bytes
from faults import faults

from trainables.config import DataConfig, EvalSuite
from trainables.data.dataset import TokenizedData, tokenize
from trainables.data.rows import count_samples, load_rows, row_examples
from trainables.data.tokenized import read_data, write_data
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


def test_rows_held_out_of_their_own_count_too(tmp_path: Path) -> None:
    held_out = chats(tmp_path, [ENDLESS, GOOD], "held_out.jsonl")
    data = config(chats(tmp_path, [GOOD, GOOD, SYSTEM]), validation_path=held_out)
    found = tokenize(data, of_bytes(TEMPLATE), seed=0)
    assert (len(found.train), len(found.validation), found.unusable) == (2, 1, 2)
    assert found.first_unusable.endswith(f": row 3 of {data.path}")
    for turns in (ENDLESS, SYSTEM):
        bad = data.model_copy(update={"validation_path": chats(tmp_path, [turns], "bad.jsonl")})
        assert "bad.jsonl; 1 of 1 rows (100%) cannot be learned" in refused(bad).rule


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


@pytest.mark.parametrize("seed", range(3))
def test_few_rows_to_replay_are_found_whatever_comes_first(seed: int, tmp_path: Path) -> None:
    """The share is that of all rows, and not of those up to the last that is wanted.

    No more are drawn than up to that one.
    """
    general = chats(tmp_path, [SYSTEM] * 2 + [GOOD] * 3, "general.jsonl")
    own = chats(tmp_path, [GOOD] * 3)
    data = config(own, replay={"path": general, "share": 0.25, "messages": "messages"})
    found = tokenize(data, of_bytes(TEMPLATE), seed=seed)
    assert (found.replayed, found.replay_distinct) == (1, 1)
    order = ["refused"] * 2 + ["good"] * 3
    Random(seed).shuffle(order)
    assert found.replay_unusable == order.index("good")


def test_a_malformed_chat_template_is_a_fault_of_its_own(tmp_path: Path) -> None:
    fault = refused(config(chats(tmp_path, [GOOD] * 3)), "{% if %}")
    assert fault.rule.startswith("the model's chat template is no valid template: ")
    assert fault.remedy == "set model.chat_template"


def test_the_counts_are_stored(tmp_path: Path) -> None:
    held_out = chats(tmp_path, [GOOD, chat("q", "a" * 99)], "held_out.jsonl")
    data = config(chats(tmp_path, [GOOD, SYSTEM, GOOD]), validation_path=held_out, max_length=60)
    tokenized = tokenize(data, of_bytes(TEMPLATE), seed=0)
    write_data(tokenized, tmp_path / "data")
    found = read_data(tmp_path / "data")
    assert replace(found, train=list(found.train)) == tokenized
    assert (found.unusable, found.validation_skipped) == (1, 1)


def test_of_all_answers_one_must_not_be_blank_and_of_the_last_the_last() -> None:
    rows = [{"messages": chat("q", "", "r", "b")}, {"messages": chat("q", "a", "r", "")}]
    row_examples(config("rows.jsonl", answers="all"), rows)
    assert len(row_examples(config("rows.jsonl"), rows[:1])) == 1
    for answers, row in {"all": {"messages": chat("q", "", "r", " ")}, "last": rows[1]}.items():
        (fault,) = faults(row_examples, config("rows.jsonl", answers=answers), [row])
        assert fault.rule.startswith("the answers are blank or marked not to be learned: row 1 of")


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


@pytest.mark.parametrize("completion", [" {{ a }}", "{{ a | trim }}", "{{ a }}{{ hint }}"])
def test_a_null_completion_is_as_blank_as_an_empty_one(completion: str, tmp_path: Path) -> None:
    """As an empty cell of a CSV is null, and all of an empty row, with which spreadsheets end."""
    file = tmp_path / "rows.csv"
    file.write_text("q,a,hint\n,,\nq,b,!\nq,,\nq,c,?\nq,d,.\nq,e,.\n,,\n")
    data = template_config(str(file), completion=completion)
    found = tokenize(data, of_bytes(TEMPLATE), seed=0)
    assert (len(found.train), found.unusable) == (4, 3)
    assert found.first_unusable == f"the completion is blank: row 1 of {file}"


def test_completions_that_are_mostly_null_or_lack_a_field_are_refused() -> None:
    (fault,) = faults(row_examples, template_config("rows.jsonl"), [{"q": "q", "a": None}])
    assert fault.rule.startswith("the completion is blank: row 1 of rows.jsonl; 1 of 1 rows")
    rows = [{"q": "q", "a": "b"}, {"q": "q", "a": None, "hint": None}]
    misspelt = template_config("rows.jsonl", completion="{{ answer }}")
    (fault,) = faults(row_examples, misspelt, rows)
    assert fault.rule == "names answer, absent from row 1 of rows.jsonl"
    in_part = template_config("rows.jsonl", completion="{{ q }}{{ a }}")
    (fault,) = faults(row_examples, in_part, rows)
    assert fault.rule == "prints a, null in row 2 of rows.jsonl"
