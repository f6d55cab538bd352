"""Chats in rows, made the turns and tools that chat templates take."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from trainables.data.row_files import Row, UnusableRow, parse_json
from trainables.errors import Fault

Turn = dict[str, Any]
Turns = list[Turn]


class Example(NamedTuple):
    """What is asked in a row, and what is learned from it.

    Attributes:
        prompt: a text, or the turns of a chat before the answer.
        answer: the completion, or the assistant's turn, with its thoughts and tool calls.
        tools: JSON schemas of the functions that the answer may call.
        unlearned: of a chat's first example, how many answers of the chat are in none, but for
            those that are marked so.
    """

    prompt: str | Turns
    answer: str | Turn
    tools: list[Any] | None = None
    unlearned: int = 0

    @property
    def asked(self) -> Turns:
        """The prompt as turns of a chat."""
        prompt = self.prompt
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt

    @property
    def question(self) -> str:
        """What is asked last: the prompt, or the user's last turn; empty if there is none."""
        asked = (str(turn.get("content")) for turn in self.asked[::-1] if turn["role"] == "user")
        return next(asked, "")

    def begun_by(self, system: str | None) -> Example:
        """The same after a system's turn, unless it has one, or that is blank."""
        if not system or self.asked[0]["role"] in _SYSTEMS:
            return self
        return self._replace(prompt=[{"role": "system", "content": system}, *self.asked])


Answers = Literal["last", "all"]
_ANSWERS = "assistant"
# What an answer may have besides `content`, each under the names that Transformers takes for it.
CARRIED = (("tool_calls",), ("reasoning_content", "reasoning", "thinking"))
_SYSTEMS = ("system", "developer")
# ShareGPT's names of roles; all others are taken as they are.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
# An assistant's turn is context alone by a zero of OpenAI's, or a false one of Axolotl's.
_MARKS = ("weight", "train", "training")
_SHOWN = 80  # characters of the roles or fields that a chat has instead of what it must have


def chat_examples(row: Row, field: str, answers: Answers) -> list[Example]:
    """The last turn of a row's chat, or each of the assistant's, as the answer to those before.

    Chats may be JSON text, as in CSV, and so may their tools, which are the row's field `tools`, as
    in TRL. Of `all` answers, one that no question of the user precedes is left out, such as a
    greeting, and so are blank ones. One that is marked not to be learned never is the answer.

    Raises:
        UnusableRow: the chat is malformed, or has no such turn, or none but blank or marked ones.
    """
    found, tools = _objects(row[field], "turns"), _tools(row)
    turns = [_turn(turn) for turn in found]
    roles = [turn["role"] for turn in turns]
    answered = [i for i, role in enumerate(roles) if role == _ANSWERS]
    asked = [i for i in answered if "user" in roles[:i]]
    is_answered = len(roles) > 1 and roles[-1] == _ANSWERS
    wanted = asked if answers == "all" else answered[-1:] if is_answered else []
    marked = {i for i in answered if _is_marked(found[i])}
    learned = [i for i in wanted if i not in marked and not _is_blank(turns[i])]
    if not learned:
        rule = "the answers are blank or marked not to be learned"
        if not wanted:
            wants = "have an answer of the role assistant to a user"
            wants = wants if answers == "all" else "end with an answer of the role assistant"
            rule = f"must {wants}, got turns of {', '.join(roles[-4:])[:_SHOWN] or 'nobody'}"
        or_all = ", or set answers: all" if answers == "last" and asked else ""
        raise _malformed(rule, f"leave such chats out{or_all}")
    first, *others = [Example(turns[:i], turns[i], tools) for i in learned]
    return [first._replace(unlearned=len({*asked} - marked - {*learned})), *others]


def _is_marked(turn: Turn) -> bool:
    """Whether a turn, as its row has it, is not to be learned.

    Raises:
        UnusableRow: a mark says neither yes nor no.
    """
    for name in _MARKS:
        if (mark := turn.get(name)) not in (None, 0, 1):  # as are False and True
            rule = f"must have a `{name}` of 0 or 1, or false or true, got {str(mark)[:40]!r}"
            raise _malformed(rule, "write 0 on answers that are context alone, and 1 on others")
    return any(turn.get(name) == 0 for name in _MARKS)


def _is_blank(answer: Turn) -> bool:
    has_more = any(name in answer for names in CARRIED for name in names)
    return not has_more and not answer["content"].strip()


def _malformed(rule: str, remedy: str = "") -> UnusableRow:
    return UnusableRow([Fault("data.messages", rule, remedy)])


def without_nulls(value: Any) -> Any:
    """A row's content without nulls: Parquet gives all turns the fields that one of them has.

    Some chat templates would write them, such as the arguments of other functions.
    """
    if isinstance(value, dict):
        return {name: without_nulls(held) for name, held in value.items() if held is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _turn(turn: Turn) -> Turn:
    """A turn as chat templates take it, out of one of OpenAI's or ShareGPT's."""
    given = turn
    if "from" in turn and "role" not in turn:
        turn = _from_sharegpt(turn)
    if isinstance(turn.get("content"), list):
        turn = turn | {"content": "".join(map(_part_text, turn["content"]))}
    if calls := turn.get("tool_calls"):
        calls = [_with_parsed_arguments(call) for call in _objects(calls, "`tool_calls`")]
        # Many templates would write the null that OpenAI's format has here as "None".
        turn = turn | {"tool_calls": calls, "content": turn.get("content") or ""}
    if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
        raise _malformed(f"must be turns of a `role` and a `content`, got one of {_kinds(given)}")
    # For an empty list, some chat templates write a turn of calls and omit the content; for a blank
    # thought, some write an empty one.
    blank = [name for names in CARRIED for name in names if not turn.get(name)]
    return {name: value for name, value in turn.items() if name not in (*blank, *_MARKS)}


def _kinds(turn: Turn) -> str:
    """A turn's fields and the types of what they hold."""
    kinds = ((name, "null" if held is None else type(held).__name__) for name, held in turn.items())
    return ", ".join(f"{name} ({kind})" for name, kind in kinds)[:_SHOWN] or "no fields"


def _from_sharegpt(turn: Turn) -> Turn:
    role, value = turn["from"], turn.get("value")
    if role != "function_call":
        return {"role": _ROLES.get(str(role), role), "content": value}
    calls = _parsed(str(value), (dict, list), "a function_call")
    functions = calls if isinstance(calls, list) else [calls]
    wrapped = [{"type": "function", "function": function} for function in functions]
    return {"role": _ROLES[role], "tool_calls": wrapped}


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise _malformed(f"must have a `content` of text alone, got a part of type {kind}")
    return str(part["text"])


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose arguments are no JSON text, as in OpenAI's format: templates would quote it."""
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_parsed_arguments(call["function"])}
    if isinstance(arguments := call.get("arguments"), str):
        return call | {"arguments": _parsed(arguments, dict, "arguments of `tool_calls`")}
    return call


def _tools(row: Row) -> list[Any] | None:
    tools = row.get("tools")
    is_blank = not tools or (isinstance(tools, str) and not tools.strip())
    return None if is_blank else _objects(tools, "`tools`")


def _objects(value: Any, name: str) -> list[Turn]:
    """A list of objects, or what its JSON text stands for.

    Raises:
        UnusableRow: it is none.
    """
    if isinstance(value, str):
        value = _parsed(value, list, name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _malformed(f"must have {name} that are a list of objects")
    return value


def _parsed(text: str, kind: type | tuple[type, ...], name: str) -> Any:
    try:
        value = parse_json(text.encode())
    except ValueError as error:
        problem = f"{text[:40]!r} ({getattr(error, 'msg', error)})"
        raise _malformed(f"must have {name} in JSON, got {problem}") from None
    if not isinstance(value, kind):
        raise _malformed(f"must have {name} in JSON, got a {type(value).__name__}: {text[:40]!r}")
    return value
