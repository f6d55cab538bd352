"""Training data as tokens, with the loss on the completion only."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from jinja2 import TemplateError

from trainables.config import DataConfig
from trainables.errors import Fault, UserError
from trainables.inputs.rows import Prompt, Turns, check_templates, load_rows, render

IGNORED_LABEL = -100


class Sample(TypedDict):
    """One tokenised sample; label `IGNORED_LABEL` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenizedData:
    """Both splits, and how many rows were longer than `max_length` and left out."""

    train: Sequence[Sample]
    validation: list[Sample]
    skipped: int
    prompts: list[str]


def tokenize(data: DataConfig, tokenizer: Any, seed: int) -> TokenizedData:
    """Load, render, tokenise and split.

    The split is drawn from `seed`, which should be the sweep's, so that every trial trains on the
    same rows.

    Raises:
        UserError: faults of files and templates, or every sample is too long.
    """
    rows = load_rows(data)
    if faults := check_templates(data, rows):
        raise UserError(faults)
    texts = list(render(data, rows))
    if data.validation_path:
        held_out_rows = load_rows(data, "validation_path")
        if faults := check_templates(data, held_out_rows, "validation_path"):
            raise UserError(faults)
        held_out = list(render(data, held_out_rows))
    else:
        random.Random(seed).shuffle(texts)  # noqa: S311 - a split, not a secret
        count = min(round(len(texts) * data.validation_fraction), len(texts) - 1)
        held_out, texts = texts[:count], texts[count:]
    kept, train_prompts = _short_enough(tokenizer, data, texts)
    validation, held_out_prompts = _short_enough(tokenizer, data, held_out)
    if not kept:
        raise UserError(
            [
                Fault(
                    "data.max_length",
                    f"every one of the {len(texts)} samples is longer than {data.max_length} "
                    "tokens",
                    "raise it",
                )
            ]
        )
    return TokenizedData(
        train=kept,
        validation=validation,
        skipped=len(texts) - len(kept),
        prompts=held_out_prompts or train_prompts,
    )


def _short_enough(
    tokenizer: Any, data: DataConfig, texts: Iterable[tuple[Prompt, str]]
) -> tuple[list[Sample], list[str]]:
    """Samples of at most `max_length` tokens, and the text of each before its completion."""
    samples, prompts = [], []
    for prompt, completion in texts:
        sample = _encode(tokenizer, data, prompt, completion)
        if len(sample["input_ids"]) <= data.max_length:
            samples.append(sample)
            prompts.append(prompt_text(tokenizer, data, prompt))
    return samples, prompts


def prompt_text(tokenizer: Any, data: DataConfig, prompt: Prompt) -> str:
    """The text before the completion: the prompt, in the chat template if one is used."""
    if isinstance(prompt, str) and not data.is_chat:
        return prompt
    return _as_chat(tokenizer, data, _turns(prompt), add_generation_prompt=True)


def _as_chat(tokenizer: Any, data: DataConfig, turns: Turns, **options: bool) -> str:
    """The turns as the tokenizer's chat template writes them.

    Raises:
        UserError: the template refuses them, such as a system's turn or two of a user in a row.
    """
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except TemplateError as error:
        field = "data.messages" if data.messages else "data.chat_template"
        begins = textwrap.shorten(str(turns[0]["content"]), 60, placeholder=" ...")
        roles = ", ".join(str(turn["role"]) for turn in turns)
        rule = f"the model's chat template refuses the turns {roles} of {begins!r}: {error}"
        raise UserError([Fault(field, rule, "change or leave out such rows")]) from error


def _turns(prompt: Prompt) -> Turns:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _encode(tokenizer: Any, data: DataConfig, prompt: Prompt, completion: str) -> Sample:
    """Tokenise prompt + completion + end-of-sequence; the loss is on what follows the prompt.

    Both are encoded together and cut at the prompt's own length, as the harness does, so that
    training and evaluation see the same tokens. A chat template ends the turn in its own way.
    """
    context = prompt_text(tokenizer, data, prompt)
    turn = _assistant_turn(tokenizer, data, prompt, completion) if data.is_chat else None
    is_ended = turn is not None and not turn.rstrip().endswith(completion.rstrip())
    completion = completion if turn is None else turn
    spaces = len(context) - len(context.rstrip())
    if spaces:  # a trailing space belongs to the first token of the completion
        context, completion = context[:-spaces], context[-spaces:] + completion
    prompt_ids = context_ids(tokenizer, context)
    ids = text_ids(tokenizer, context + completion)
    if not is_ended and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    start = min(len(prompt_ids), len(ids) - 1)
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * start + ids[start:]}


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, as the harness makes them.

    The tokenizer adds a beginning-of-sequence token, if it does so at all, unless the text has one,
    as chat templates write it.
    """
    bos = tokenizer.bos_token
    special = bos is None or not text.startswith(bos)
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def context_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that something follows, so without an end that the tokenizer adds."""
    ids = text_ids(tokenizer, text)
    if ids[-1:] != [tokenizer.eos_token_id]:
        return ids
    of_text = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if ids[-len(of_text) :] == of_text else ids[:-1]


def _assistant_turn(
    tokenizer: Any, data: DataConfig, prompt: Prompt, completion: str
) -> str | None:
    """What the chat template writes after the prompt for this answer, including the turn's end.

    None if, with the answer, it renders the prompt or the answer itself differently.
    """
    turns = [*_turns(prompt), {"role": "assistant", "content": completion}]
    context = prompt_text(tokenizer, data, prompt)
    whole = _as_chat(tokenizer, data, turns)
    turn = whole.removeprefix(context)
    return turn if whole.startswith(context) and completion.strip() in turn else None


def opening_of_answers(tokenizer: Any) -> str:
    """What the chat template writes before an answer, but not where it asks for one.

    Such as an empty thought. Who only asks, as the tasks do, finds another answer there.
    """
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # it wants a system's turn, for example
        return ""
    opening, answer, _ = whole.removeprefix(asked).rpartition("answer")
    return opening.strip() if answer and whole.startswith(asked) else ""


def training_order(samples: int, count: int, seed: int) -> list[int]:
    """Indices of the first `count` samples that a training sees: one shuffle after another.

    The order is ours, not the trainer's, so that it is the same for any number of workers and goes
    on where it was when a training resumes from a checkpoint.
    """
    generator = random.Random(seed)  # noqa: S311 - an order, not a secret
    order: list[int] = []
    while len(order) < count:
        epoch = list(range(samples))
        generator.shuffle(epoch)
        order += epoch
    return order[:count]
