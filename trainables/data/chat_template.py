"""Examples as a tokenizer's chat template writes them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from trainables.config import DataConfig
from trainables.data.chats import CARRIED, Example, Turn, Turns
from trainables.data.row_files import UnusableRow
from trainables.errors import Fault, UserError


def prompt_text(tokenizer: Any, data: DataConfig, example: Example) -> str:
    """The text before the completion: the prompt, in the chat template if one is used."""
    if isinstance(example.prompt, str) and not data.is_chat:
        return example.prompt
    return _as_chat(tokenizer, data, example, example.asked, add_generation_prompt=True)


def _as_chat(
    tokenizer: Any, data: DataConfig, example: Example, turns: Turns, **options: bool
) -> str:
    """Turns of an example, with its tools, as the tokenizer's chat template writes them.

    Raises:
        UnusableRow: the template refuses them, such as a system's turn or two of a user in a row.
        UserError: it is malformed.
    """
    # Templates introduce even an empty list.
    tools: Mapping[str, Any] = {"tools": example.tools} if example.tools else {}
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **tools, **options))
    except TemplateSyntaxError as error:
        rule = f"the model's chat template is no valid template: {error}"
        raise UserError([Fault(data.chat_field, rule, "set model.chat_template")]) from error
    except (TemplateError, TypeError) as error:  # TypeError: arguments of calls in another form
        rule = f"the model's chat template refuses {_in_words(turns)}: {error}"
        remedy = "change such rows, or set model.chat_template"
        raise UnusableRow([Fault(data.chat_field, rule, remedy)]) from error


def _in_words(turns: Turns) -> str:
    begins = textwrap.shorten(str(turns[0].get("content")), 60, placeholder=" ...")
    return f"the turns {', '.join(str(turn['role']) for turn in turns)} of {begins!r}"


def chat_parts(
    tokenizer: Any, data: DataConfig, example: Example, context: str
) -> tuple[str, str, bool]:
    """Context, what the chat template writes after it for the answer, and whether it ends the turn.

    Some templates write the context, or the answer itself, differently once there is an answer.
    Then the answer is learned as it is, without an opening that the context has already. One with
    tool calls or thoughts is learned from where the renderings differ.
    """
    answer = example.answer
    if isinstance(answer, str):
        answer = {"role": "assistant", "content": answer}
    whole = _as_chat(tokenizer, data, example, [*example.asked, answer])
    content = str(answer.get("content") or "")
    if _has_more_than_content(tokenizer, data, example, answer, whole):
        context = commonprefix([context, whole])  # noqa: RUF071 - of texts
        is_ended = bool(_end_of_turns(tokenizer, data, example).strip())
        return context, whole.removeprefix(context), is_ended
    turn = whole.removeprefix(context)
    if whole.startswith(context) and content.strip() in turn:
        return context, turn, not turn.rstrip().endswith(content.rstrip())
    bare = _as_chat(tokenizer, data, example, example.asked)
    request = context.removeprefix(bare) if context.startswith(bare) else ""
    rest = _without_opening(request, content)
    if rest == content:
        return context, content, False
    end = _end_of_turns(tokenizer, data, example)
    if not (whole.startswith(context) and "".join(rest.split()) in "".join(turn.split())):
        turn = rest.rstrip() + end
    return context, turn, bool(end.strip())


def _without_opening(request: str, content: str) -> str:
    """An answer without the tags that it is asked for with, such as `<think>`, if it has them."""
    asked, text = request.rstrip(), content.lstrip()
    for start, letter in enumerate(asked):  # the longest first
        opening = asked[start:]
        if letter in "<[" and opening[-1] in ">]" and text.startswith(opening):
            rest = text.removeprefix(opening)
            return rest if asked == request else rest.lstrip()
    return content


def _has_more_than_content(
    tokenizer: Any, data: DataConfig, example: Example, answer: Turn, whole: str
) -> bool:
    """Whether an answer has more than a content.

    Raises:
        UnusableRow: the chat template leaves some of it out.
    """
    has_more = False
    for names in CARRIED:
        given = [name for name in names if name in answer]
        if not given:
            continue
        has_more = True
        less = {name: value for name, value in answer.items() if name not in given}
        less["content"] = less.get("content") or ""
        if _as_chat(tokenizer, data, example, [*example.asked, less]) == whole:
            written = f"no {given[0]}: {_in_words(example.asked)}"
            rule = f"the model's chat template writes {written}"
            remedy = "write it into `content`, or leave it out"
            raise UnusableRow([Fault(data.chat_field, rule, remedy)])
    return has_more


def _end_of_turns(tokenizer: Any, data: DataConfig, example: Example) -> str:
    """What the chat template writes after an assistant's turn."""
    turns = [*example.asked, {"role": "assistant", "content": "answer"}]
    return _as_chat(tokenizer, data, example, turns).rpartition("answer")[2]


def answer_opening(tokenizer: Any) -> str:
    """What the chat template writes before an answer, but not where it asks for one.

    An empty thought is an example. Tasks only ask, so their answers begin without it.
    """
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # it wants a system's turn, for example
        return ""
    opening = whole.removeprefix(asked).rpartition("answer")[0]
    return opening.strip() if whole.startswith(asked) else ""
