"""From chats in rows to tokens, with the loss on the answer as the chat template writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import END, of_bytes
from pydantic import ValidationError

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
    ["cohere2", "gemma3", "lfm2_v2", "llama3", "phi3", "qwen3", "qwen3_instruct_2507", "qwen3_vl"],
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
@pytest.mark.parametrize(
    "template", ["qwen2_5", "qwen3", "qwen3_5_think", "gptoss", "nemotron_3_nano"]
)
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


def test_where_the_chat_template_joins_the_content_alone_arguments_are_not_quoted_twice(
    tmp_path: Path,
) -> None:
    joining = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = of_bytes(joining)
    row = {"messages": [QUESTION, {"role": "assistant", "tool_calls": [CALL]}]}
    (sample,) = tokenized(tmp_path, tokenizer, [row]).train
    assert learned(tokenizer, sample)[1] == f'{{"a": 1, "b": 2}}{END}'


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
@pytest.mark.parametrize("template", ["qwen3", "qwen3_5_think", "gptoss", "nemotron_3_nano"])
def test_thoughts_are_learned(template: str, name: str, tmp_path: Path) -> None:
    tokenizer = of_bytes(template)
    turns = [QUESTION, {"role": "assistant", "content": "3", name: "Add them."}]
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    before, after = learned(tokenizer, sample)
    assert before + after == tokenizer.apply_chat_template(turns, tokenize=False)
    assert "Add them." in after
    assert (before + after).count("<think>") == (template != "gptoss")


@pytest.mark.parametrize(
    ("template", "more"),
    [("llama3", {"tool_calls": [CALL]}), ("qwen2_5", {"reasoning_content": "Add them."})],
)
def test_what_the_chat_template_leaves_out_is_refused(
    template: str, more: dict[str, Any], tmp_path: Path
) -> None:
    turns = [QUESTION, {"role": "assistant", "content": "3"} | more]
    (fault,) = faults(tmp_path, of_bytes(template), [{"messages": turns}])
    assert fault.field == "data.messages"
    assert fault.rule.startswith(f"the model's chat template writes no {next(iter(more))}: ")


PARALLEL = [CALL, {"type": "function", "function": {"name": "neg", "arguments": {"a": 3}}}]


@pytest.mark.parametrize("calls", [PARALLEL, [CALL, CALL]])
def test_calls_of_which_the_chat_template_writes_the_first_alone_are_refused(
    calls: list[Any], tmp_path: Path
) -> None:
    turns = [QUESTION, {"role": "assistant", "tool_calls": calls}]
    (fault,) = faults(tmp_path, of_bytes("gptoss"), [{"messages": turns}])
    assert fault.field == "data.messages"
    assert fault.rule.startswith("the model's chat template writes fewer than the 2 tool_calls: ")


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3_5_think"])
def test_parallel_calls_are_learned(template: str, tmp_path: Path) -> None:
    tokenizer = of_bytes(template)
    turns = [QUESTION, {"role": "assistant", "content": "", "tool_calls": PARALLEL}]
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    before, after = learned(tokenizer, sample)
    assert before + after == written(tokenizer, turns)
    assert after.index("add") < after.index("neg")


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"tools": "[{"}, "must have `tools` in JSON, got '[{' (Expecting property name"),
        ({"tools": "{}"}, "must have `tools` in JSON, got a dict: '{}'"),
        ({"tools": ["add"]}, "must have `tools` that are a list of objects"),
        ({"tool_calls": "add"}, "must have `tool_calls` in JSON, got 'add'"),
        ({"tool_calls": ["add"]}, "must have `tool_calls` that are a list of objects"),
        (
            {"tool_calls": [{"name": "add", "arguments": "a=1"}]},
            "must have arguments of `tool_calls` in JSON, got 'a=1'",
        ),
        (
            {"tool_calls": [{"name": "add", "arguments": r'{"a": "\ud83d"}'}]},
            'must have arguments of `tool_calls` in JSON, got \'{"a": "\\\\ud83d"}\' (',
        ),
        (
            {"tools": "[" * 100_000},
            f"must have `tools` in JSON, got '{'[' * 40}' (it is nested too",
        ),
    ],
)
def test_malformed_tools_are_refused(row: dict[str, Any], rule: str, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "3"} | row
    rows = [{"messages": [QUESTION, answer]} | row]
    (fault,) = faults(tmp_path, of_bytes("qwen3"), rows)
    assert fault.field == "data.messages"
    assert fault.rule.startswith(rule)
    assert f": row 1 of {tmp_path / 'rows.jsonl'}; 1 of 1 rows" in fault.rule


def test_a_turn_of_tool_calls_ends_as_its_chat_template_has_it(tmp_path: Path) -> None:
    """With the end of sequence where the template writes no end."""
    endless = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    bare = {"type": "function", "function": {"name": "add"}}
    ends = [(endless, bare, f"<call>add{END}"), ("qwen2_5", CALL, f"</tool_call>{END}\n")]
    for template, call, end in ends:
        tokenizer = of_bytes(template)
        question = {"role": "user", "content": "What is the answer to 1 + 2?"}
        row = {"messages": [question, {"role": "assistant", "tool_calls": [call]}]}
        (sample,) = tokenized(tmp_path, tokenizer, [row]).train
        assert learned(tokenizer, sample)[1].endswith(end)


@pytest.mark.parametrize("calls", [[], "[]"])
@pytest.mark.parametrize("template", ["gptoss", "llama3_1", "lfm2_2_5"])
def test_a_turn_of_blank_calls_and_thoughts_is_learned_as_one_that_names_none(
    template: str, calls: object, tmp_path: Path
) -> None:
    """Some templates ask only whether it names them, and write no content of earlier turns then.

    Or they write that it thought nothing. So is a chat whose tools are blank, as a table may have
    them.
    """
    tokenizer = of_bytes(template)
    answer = {"role": "assistant", "content": "3"}
    blank: dict[str, Any] = {"tool_calls": calls, "reasoning_content": ""}
    named, unnamed = (
        tokenized(tmp_path, tokenizer, [{"messages": [QUESTION, turn] * 2} | tools]).train
        for turn, tools in ((answer | blank, {"tools": " "}), (answer, {}))
    )
    assert "3" in learned(tokenizer, unnamed[0])[1]
    assert named == unnamed


REASONED = "<think>\nAdd them.\n</think>\n\n3"


@pytest.mark.parametrize(
    ("template", "content"),
    [
        ("qwen3_5_think", REASONED),
        ("qwen3_5_think", "<think>Add them.</think>3"),
        ("nemotron_3_nano", REASONED),
    ],
)
def test_thoughts_in_the_content_are_learned_as_the_chat_template_writes_them(
    template: str, content: str, tmp_path: Path
) -> None:
    tokenizer = of_bytes(template)
    turns = [QUESTION, {"role": "assistant", "content": content}]
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    before, after = learned(tokenizer, sample)
    assert before + after == tokenizer.apply_chat_template(turns, tokenize=False)
    assert (before + after).count("<think>") == 1
    assert after.startswith("Add them.")


@pytest.mark.parametrize("fields", [{}, {"messages": None, "chat_template": True}])
def test_a_thought_that_the_question_opens_is_not_opened_twice(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    """By templates that leave out thoughts once they are had, such as DeepSeek's."""
    tokenizer = of_bytes("deepseek_r1_distill")
    turns = [QUESTION, {"role": "assistant", "content": REASONED}]
    rows = [{"messages": turns, "prompt": QUESTION["content"], "completion": REASONED}]
    (sample,) = tokenized(tmp_path, tokenizer, rows, **fields).train
    before, after = learned(tokenizer, sample)
    assert before.endswith("><think>\n")
    end = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("3")[2]
    assert after == f"Add them.\n</think>\n\n3{end}"


@pytest.mark.parametrize("content", [">3", "3", "<b>3", " <assistant"])
def test_an_answer_without_the_opening_stays_as_it_is(content: str, tmp_path: Path) -> None:
    rewriting = "{{ messages[0].content }}{% if add_generation_prompt %}<assistant>{% endif %}"
    turns = [{"role": "user", "content": "Bold: <b>"}, {"role": "assistant", "content": content}]
    tokenizer = of_bytes(rewriting)
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    assert learned(tokenizer, sample) == ("Bold: <b><assistant>", content + END)


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
# Its other names, calls in a list, and a turn that has a role besides.
AS_SHAREGPT_TOO = [
    AS_SHAREGPT[0],
    {"from": "me", "role": "user", "content": "q"},
    {"from": "function_call", "value": json.dumps([CALLED])},
    {"from": "function_response", "value": "3"},
    AS_SHAREGPT[-1],
]
IN_PARTS = [
    turn
    if "content" not in turn
    else turn | {"content": [{"type": "text", "text": letter} for letter in turn["content"]]}
    for turn in AS_OPENAI
]


FROM_OTHERS = [
    [*AS_SHAREGPT[:-1], AS_SHAREGPT[-1] | {"from": name}] for name in ("model", "assistant")
]


@pytest.mark.parametrize(
    "turns",
    [AS_OPENAI, AS_SHAREGPT, AS_SHAREGPT_TOO, *FROM_OTHERS, IN_PARTS, json.dumps(AS_OPENAI)],
)
def test_chats_of_other_formats_are_learned_as_openai_s(turns: Any, tmp_path: Path) -> None:
    tokenizer = of_bytes("qwen2_5")
    (sample,) = tokenized(tmp_path, tokenizer, [{"messages": turns}]).train
    before, after = learned(tokenizer, sample)
    assert (before + after, after) == (written(tokenizer, AS_OPENAI), f"It is 3.{END}\n")


def without_nulls(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if value is not None}


def test_what_parquet_fills_in_is_not_learned(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    calls = [{"name": "add", "arguments": {"a": 0}}, {"name": "neg", "arguments": {"b": 2}}]
    turns = [QUESTION, {"role": "assistant", "tool_calls": calls}]
    more = {"type": "function", "function": {"name": "neg", "strict": True}}
    rows = [{"messages": turns, "tools": [ADD, more]}]
    file = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, file)
    tokenizer = of_bytes("qwen2_5")
    (sample,) = tokenized(tmp_path, tokenizer, rows, path=str(file)).train
    before, after = learned(tokenizer, sample)
    filled_in = json.dumps(table["tools"][0].as_py())  # whose fields older PyArrow sorts
    tools = json.loads(filled_in, object_pairs_hook=without_nulls)
    assert before + after == written(tokenizer, turns, tools)


@pytest.mark.parametrize(
    ("turn", "rule"),
    [
        (
            {"content": [{"type": "image_url", "image_url": {"url": "u"}}]},
            "must have a `content` of text alone, got a part of type image_url: row 1",
        ),
        ({"content": [{"type": "text"}]}, "must have a `content` of text alone, got a part of"),
        ({"content": ["a"]}, "must have a `content` of text alone, got a part of type str"),
        ({"content": {"text": "a"}}, "must be turns of a `role` and a `content`"),
        ({"role": None, "content": "a"}, "must be turns of a `role` and a `content`"),
        ({"role": {}, "content": "a"}, "must be turns of a `role` and a `content`"),
    ],
)
def test_content_that_is_no_text_is_refused(
    turn: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user"} | turn, {"role": "assistant", "content": "3"}]}]
    (fault,) = faults(tmp_path, of_bytes("qwen3"), rows)
    assert fault.rule.startswith(rule)


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


ENDS = "must end with an answer of the role assistant, got turns of"
TURNS = "must be turns of a `role` and a `content`"


def test_a_chat_without_any_answer_is_refused(tmp_path: Path) -> None:
    rows = [{"messages": THOUGHTFUL[:3]}]
    (fault,) = faults(tmp_path, of_bytes("qwen3"), rows, {"answers": "all"})
    told = "must have an answer of the role assistant to a user, got turns of system, assistant, "
    assert fault.rule.startswith(f"{told}user: row 1 of")


def test_no_chat_is_in_both_splits_and_long_samples_are_left_out_one_by_one(
    tmp_path: Path,
) -> None:
    rows = [{"messages": [{"role": "user", "content": f"chat {i};"}]} for i in range(12)]
    for i, row in enumerate(rows):
        for turn in range(1 + i % 3):
            row["messages"] += [
                {"role": "assistant", "content": "a" * (100 if turn == 2 else 10)},
                {"role": "user", "content": "more"},
            ]
    tokenizer = of_bytes("qwen3")
    fields = {"answers": "all", "validation_fraction": 0.5, "max_length": 280}
    splits = tokenized(tmp_path, tokenizer, rows, **fields)
    texts = [
        [tokenizer.decode(s["input_ids"]) for s in part]
        for part in (splits.train, splits.validation)
    ]
    chats = [{text.split("chat ")[1].split(";")[0] for text in part} for part in texts]
    assert (len(chats[0]), len(chats[1]), chats[0] & chats[1]) == (6, 6, set())
    answers = sum(1 + int(chat) % 3 for chat in chats[0])
    assert 0 < splits.skipped == sum(int(chat) % 3 == 2 for chat in chats[0])
    assert len(splits.train) == answers - splits.skipped


@pytest.mark.parametrize(
    ("turns", "rule"),
    [
        ([QUESTION, QUESTION | {"role": "bot"}], f"{ENDS} user, bot"),
        ([{"from": "palm", "value": "a"}] * 2, f"{ENDS} palm, palm"),
        ([{"role": "assistant", "content": "a"}], f"{ENDS} assistant"),
        ([], f"{ENDS} nobody"),
        ([{"speaker": "a", "text": "b"}], f"{TURNS}, got one of speaker (str), text (str)"),
        ([{"from": "human", "text": "b"}], f"{TURNS}, got one of from (str), text (str)"),
        ([{"from": ["human"], "value": "b"}], f"{TURNS}, got one of from (list), value (str)"),
        ("a text", "must have turns in JSON, got 'a text' (Expecting value)"),
        ('{"role": "user"}', 'must have turns in JSON, got a dict: \'{"role": "user"}\''),
        ([{"role": "user", "content": None}], f"{TURNS}, got one of role (str), content (null)"),
        ([{}], f"{TURNS}, got one of no fields"),
    ],
)
def test_what_a_chat_has_instead_is_named(turns: Any, rule: str, tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, of_bytes("qwen3"), [{"messages": turns}])
    assert fault.rule.startswith(f"{rule}: row 1 of ")


@pytest.mark.parametrize(
    ("turns", "remedy"),
    [
        ([QUESTION], "leave such chats out"),
        ([QUESTION, {"role": "assistant", "content": "3"}, QUESTION], "or set answers: all"),
    ],
)
def test_all_answers_are_offered_where_there_is_one(
    turns: Any, remedy: str, tmp_path: Path
) -> None:
    (fault,) = faults(tmp_path, of_bytes("qwen3"), [{"messages": turns}])
    assert fault.remedy.endswith(remedy)


MARKED: list[dict[str, Any]] = [
    {"weight": 0},
    {"train": False},
    {"training": False},
    {"weight": 0.0, "train": True},
]


@pytest.mark.parametrize("mark", MARKED)
@pytest.mark.parametrize("is_sharegpt", [False, True])
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


@pytest.mark.parametrize("mark", MARKED)
def test_a_chat_of_marked_answers_alone_is_left_out(mark: dict[str, Any], tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "3"}
    good, bad = [QUESTION, answer], [QUESTION, answer | mark]
    rows = [{"messages": turns} for turns in (good + bad, good, bad, good)]
    for answers, unusable, row in (("last", 2, 1), ("all", 1, 3)):
        found = tokenized(tmp_path, of_bytes("qwen3"), rows, answers=answers)
        assert (len(found.train), found.unusable) == (4 - 1 - (answers == "last"), unusable)
        told = f"the answers are blank or marked not to be learned: row {row} of "
        assert found.first_unusable.startswith(told)
    (fault,) = faults(tmp_path, of_bytes("qwen3"), rows[:1])
    assert fault.remedy == "leave such chats out, or set answers: all"


@pytest.mark.parametrize(("name", "mark"), [("weight", 0.5), ("train", "no"), ("training", [0])])
def test_a_mark_that_says_neither_is_refused(name: str, mark: object, tmp_path: Path) -> None:
    rows = [{"messages": [QUESTION, {"role": "assistant", "content": "3", name: mark}]}]
    (fault,) = faults(tmp_path, of_bytes("qwen3"), rows)
    assert fault.field == "data.messages"
    told = f"must have a `{name}` of 0 or 1, or false or true, got '{mark}': row 1 of "
    assert fault.rule.startswith(told)
    assert fault.remedy == "write 0 on answers that are context alone, and 1 on others"


def test_only_chats_have_several_answers() -> None:
    with pytest.raises(ValidationError, match="answers must be last without messages, got all"):
        DataConfig(path="x", answers="all")
