"""From chats in rows to tokens, with the loss on the answer as the chat template writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import END, of_bytes

from trainables.config import DataConfig
from trainables.data.dataset import IGNORED_LABEL, TokenizedData, tokenize
from trainables.errors import Fault, UserError

QUESTION = {"role": "user", "content": "What is 1 + 2?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def written(tokenizer: Any, turns: list[dict[str, Any]], tools: Any = None) -> str:
    return str(tokenizer.apply_chat_template(turns, tools=tools, tokenize=False))


def tokenized(
    folder: Path, tokenizer: Any, rows: list[dict[str, Any]], **fields: Any
) -> TokenizedData:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    fixed = {"messages": "messages", "validation_fraction": 0, "max_length": 10_000}
    return tokenize(DataConfig(**{"path": str(file)} | fixed | fields), tokenizer, seed=0)


def learned(tokenizer: Any, sample: Any) -> tuple[str, str]:
    """The text before the loss, and that of the loss."""
    start = sum(label == IGNORED_LABEL for label in sample["labels"])
    assert sample["labels"][start:] == sample["input_ids"][start:]
    before, after = sample["input_ids"][:start], sample["input_ids"][start:]
    return tokenizer.decode(before), tokenizer.decode(after)


@pytest.mark.parametrize(
    "template",
    ["gemma3", "llama3", "phi3", "qwen3"],
)
def test_what_is_learned_of_an_answer_is_what_trl_learns(template: str, tmp_path: Path) -> None:
    """Its templates for training mark it; ours do not, nor do those of models."""
    tokenizer = of_bytes(template)
    turns = [QUESTION, {"role": "assistant", "content": "It is 3."}]
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    tokenizer.chat_template = of_bytes(f"{template}_training").chat_template
    marked = tokenizer.apply_chat_template(
        turns, return_assistant_tokens_mask=True, return_dict=True
    )
    masked = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
    theirs = [token if is_learned else IGNORED_LABEL for token, is_learned in masked]
    assert sample["labels"] == theirs


def faults(folder: Path, tokenizer: Any, rows: Any, fields: Any = None) -> list[Fault]:
    with pytest.raises(UserError) as caught:
        tokenized(folder, tokenizer, rows, **(fields or {}))
    return caught.value.faults


@pytest.mark.parametrize("content", [None, "I add."])
@pytest.mark.parametrize("arguments", ["a dict", "JSON text"])
@pytest.mark.parametrize("template", ["qwen2_5", "gptoss"])
def test_tool_calls_are_learned_as_trl_renders_them(
    template: str, arguments: str, content: str | None, tmp_path: Path
) -> None:
    tokenizer = of_bytes(template)
    call: dict[str, Any] = json.loads(json.dumps(CALL))
    as_given: Any = [json.loads(json.dumps(CALL))]
    if arguments == "JSON text":  # as OpenAI has them
        as_given[0]["function"]["arguments"] = json.dumps(CALL["function"]["arguments"])  # type: ignore[index]
    answer = {"role": "assistant", "content": content}
    row = {"messages": [QUESTION, answer | {"tool_calls": as_given}], "tools": json.dumps([ADD])}
    (sample,) = tokenized(tmp_path, tokenizer, [row]).train
    turns = [QUESTION, {"role": "assistant", "content": content or "", "tool_calls": [call]}]
    whole = tokenizer.apply_chat_template(turns, tools=[ADD], tokenize=False)
    asked = tokenizer.apply_chat_template(
        turns[:1], tools=[ADD], tokenize=False, add_generation_prompt=True
    )
    before, after = learned(tokenizer, sample)
    assert before + after == whole
    assert "Adds." in before
    assert asked.startswith(before)
    assert "add" in after


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
@pytest.mark.parametrize("template", ["qwen3", "gptoss"])
def test_thoughts_are_learned(template: str, name: str, tmp_path: Path) -> None:
    tokenizer = of_bytes(template)
    turns = [QUESTION, {"role": "assistant", "content": "3", name: "Add them."}]
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    before, after = learned(tokenizer, sample)
    assert before + after == tokenizer.apply_chat_template(turns, tokenize=False)
    assert "Add them." in after
    assert (before + after).count("<think>") == (template != "gptoss")


CALLED = {"name": "add", "arguments": {"a": 1}}
AS_OPENAI = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": CALLED}]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]
AS_SHAREGPT = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "q"},
    {"from": "function_call", "value": json.dumps(CALLED)},
    {"from": "observation", "value": "3"},
    {"from": "gpt", "value": "It is 3."},
]
IN_PARTS = [
    turn
    if "content" not in turn
    else turn | {"content": [{"type": "text", "text": letter} for letter in turn["content"]]}
    for turn in AS_OPENAI
]


@pytest.mark.parametrize(
    "turns",
    [AS_OPENAI, AS_SHAREGPT, IN_PARTS, json.dumps(AS_OPENAI)],
)
def test_chats_of_other_formats_are_learned_as_openai_s(turns: Any, tmp_path: Path) -> None:
    tokenizer = of_bytes("qwen2_5")
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    before, after = learned(tokenizer, sample)
    assert (before + after, after) == (written(tokenizer, AS_OPENAI), f"It is 3.{END}\n")


THOUGHTFUL = [
    {"role": "system", "content": "s"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "one", "reasoning_content": "first"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "two", "reasoning_content": "second"},
    {"role": "user", "content": "bye"},
]


def test_all_answers_of_a_chat_are_learned_each_after_what_was_said_before(
    tmp_path: Path,
) -> None:
    """Thoughts too, which the template leaves out of earlier turns."""
    tokenizer = of_bytes("qwen3")
    found = tokenized(tmp_path, tokenizer, [{"messages": THOUGHTFUL}], answers="all")
    samples = [learned(tokenizer, sample) for sample in found.train]
    assert [before + after for before, after in samples] == [
        written(tokenizer, THOUGHTFUL[:end]) for end in (4, 6)
    ]
    assert ["first" in samples[0][1], "first" in "".join(samples[1])] == [True, False]
    assert "second" in samples[1][1]
    assert (found.skipped, len(found.prompts)) == (0, 2)


QUESTIONED = [QUESTION, {"role": "assistant", "content": "3"}]
CALLS = "must have `tool_calls`"
TURNS = "must be turns of a `role` and a `content`, got one of "
LAST = "must end with an answer of the role assistant, got turns of "


def answered(**fields: Any) -> list[dict[str, Any]]:
    return [QUESTION, QUESTIONED[1] | fields]


@pytest.mark.parametrize(
    ("template", "row", "fact", "remedy"),
    [
        # Calls, tools and thoughts.
        ("qwen3", {"tools": "[{"}, "must have `tools` in JSON, got '[{'", ""),
        ("qwen3", answered(tool_calls="add"), f"{CALLS} in JSON, got 'add'", ""),
        ("llama3", answered(tool_calls=[CALL]), "writes no tool_calls", "write it into `content`"),
        # Turns.
        ("qwen3", [QUESTION], f"{LAST}user", "leave such chats out"),
        ("qwen3", [*QUESTIONED, QUESTION], LAST, "or set answers: all"),
        ("qwen3", [{"speaker": "a", "text": "b"}], f"{TURNS}speaker (str), text (str)", ""),
        ("qwen3", answered(content=None), f"{TURNS}role (str), content (null)", ""),
        ("qwen3", answered(content=[{"type": "image_url"}]), "got a part of type image_url", ""),
        ("qwen3", "a text", "must have turns in JSON, got 'a text'", ""),
        ("qwen3", answered(weight=0.5), "a `weight` of 0 or 1", "0 on"),
    ],
)
def test_why_a_chat_cannot_be_learned_is_reported(
    template: str, row: Any, fact: str, remedy: str, tmp_path: Path
) -> None:
    rows = [{"messages": QUESTIONED} | row if isinstance(row, dict) else {"messages": row}]
    (fault,) = faults(tmp_path, of_bytes(template), rows)
    assert fault.field == "data.messages"
    assert fact in fault.rule
    assert "row 1 of " in fault.rule
    assert remedy in fault.remedy


MARKED: list[dict[str, Any]] = [
    {"weight": 0},
    {"train": False},
    {"training": False},
    {"weight": 0.0, "train": True},
]


@pytest.mark.parametrize(("mark", "is_sharegpt"), zip(MARKED, [True, False] * 2, strict=True))
def test_an_answer_that_is_marked_so_is_context_alone(
    mark: dict[str, Any], is_sharegpt: bool, tmp_path: Path
) -> None:
    """As if no turn were marked, and without its sample; no chat template sees a mark."""
    told = "{% for m in messages %}{% if m.weight is defined or m.train is defined %}!{% endif %}"
    tokenizer = of_bytes(f"{told}<{{{{ m.role }}}}>{{{{ m.content }}}}|{{% endfor %}}")
    unmarked = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(("q", "bad", "r", "good"))
    ]
    turns = unmarked
    if is_sharegpt:
        names = {"user": "human", "assistant": "gpt"}
        turns = [{"from": names[turn["role"]], "value": turn["content"]} for turn in unmarked]
    plain = {"weight": 1, "train": True, "training": None}
    marked = [turns[0], turns[1] | mark, turns[2] | {"weight": 0}, turns[3] | plain]
    every, last = (
        tokenized(tmp_path, tokenizer, [{"messages": marked}], answers=answers)
        for answers in ("all", "last")
    )
    _, sample = tokenized(tmp_path, tokenizer, [{"messages": unmarked}], answers="all").train
    assert every.train == last.train == [sample]
    assert tokenizer.decode(sample["input_ids"]).startswith("<user>q|<assistant>bad|<user>r|")
    assert every.unlearned == last.unlearned == 0  # which `all` would learn
