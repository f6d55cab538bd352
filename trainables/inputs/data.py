"""Training data as tokens, with the loss on the completion, or on all of a text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any, TypedDict

from trainables.config import DataConfig
from trainables.errors import Fault, UserError
from trainables.inputs.chat_template import chat_parts, prompt_text
from trainables.inputs.chats import Example
from trainables.inputs.rows import as_replay, check_templates, load_rows, render
from trainables.results.records import SampleText

IGNORED_LABEL = -100
# Characters of a sample's context, and of what is learned, that are shown.
_SHOWN, _CUT = 300, " ... "


class Sample(TypedDict):
    """One tokenised sample; label `IGNORED_LABEL` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenizedData:
    """Both splits.

    Attributes:
        train, validation: samples; those of a row are in the same split.
        skipped: number of samples to train on that were longer than `max_length` and left out.
        prompts: texts before completions, of the rows held out if there are any.
        replayed: how many of the training samples, the last ones, are of `data.replay`.
        replay_distinct: how many of these there are before they are repeated.
        replay_skipped: as `skipped`, of the samples drawn from `data.replay`.
        replayed_tokens: share of the learned tokens that the replayed samples have.
    """

    train: Sequence[Sample]
    validation: list[Sample]
    skipped: int
    prompts: list[str]
    replayed: int = 0
    replay_distinct: int = 0
    replay_skipped: int = 0
    replayed_tokens: float = 0.0


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
    examples = list(render(data, rows))
    if data.validation_path:
        held_out_rows = load_rows(data, "validation_path")
        if faults := check_templates(data, held_out_rows, "validation_path"):
            raise UserError(faults)
        held_out = list(render(data, held_out_rows))
    else:
        random.Random(seed).shuffle(examples)  # noqa: S311 - a split, not a secret
        count = min(round(len(examples) * data.validation_fraction), len(examples) - 1)
        held_out, examples = examples[:count], examples[count:]
    kept, train_prompts, skipped = _short_enough(tokenizer, data, chain(*examples))
    validation, held_out_prompts, _ = _short_enough(tokenizer, data, chain(*held_out))
    if not kept:
        rule = f"every one of the {skipped} samples is longer than {data.max_length} tokens"
        raise UserError([Fault("data.max_length", rule, "raise it")])
    replayed, distinct, replay_skipped = _replayed(tokenizer, data, seed, len(kept))
    return TokenizedData(
        train=[*kept, *replayed],
        validation=validation,
        skipped=skipped,
        prompts=held_out_prompts or train_prompts,
        replayed=len(replayed),
        replay_distinct=distinct,
        replay_skipped=replay_skipped,
        replayed_tokens=_learned_tokens(replayed) / _learned_tokens([*kept, *replayed]),
    )


def _replayed(
    tokenizer: Any, data: DataConfig, seed: int, count: int
) -> tuple[list[Sample], int, int]:
    """Samples of `data.replay`, as many as belong beside `count` others, from rows in random order.

    Also how many of them are distinct, and how many were too long.

    Raises:
        UserError: faults of its files and templates, or all its samples are too long.
    """
    replayed = data.replayed
    if data.replay is None or replayed is None:
        return [], 0, 0
    try:
        rows = load_rows(replayed)
        if faults := check_templates(replayed, rows):
            raise UserError(faults)
        examples = list(render(replayed, rows))
        random.Random(seed).shuffle(examples)  # noqa: S311 - an order, not a secret
        wanted = data.replay.beside(count)
        samples: list[Sample] = []
        skipped = 0
        for example in chain(*examples):
            if len(samples) >= wanted:
                break
            found, _, longer = _short_enough(tokenizer, replayed, [example])
            samples += found
            skipped += longer
    except UserError as error:
        raise UserError(as_replay(error.faults)) from error
    if not samples:
        rule = f"every sample of it is longer than {data.max_length} tokens"
        raise UserError([Fault("data.replay", rule, "raise data.max_length")])
    return list(islice(cycle(samples), wanted)), min(len(samples), wanted), skipped


def _learned_tokens(samples: Iterable[Sample]) -> int:
    return sum(len(s["labels"]) - s["labels"].count(IGNORED_LABEL) for s in samples)


def _short_enough(
    tokenizer: Any, data: DataConfig, examples: Iterable[Example]
) -> tuple[list[Sample], list[str], int]:
    """Samples of at most `max_length` tokens, the text before each completion, and what is left."""
    samples, prompts, longer = [], [], 0
    for example in examples:
        if data.text is not None:
            pieces, beginning = _pieces(tokenizer, str(example.answer), data.max_length)
            samples += pieces
            prompts.append(beginning)
            continue
        sample = _encode(tokenizer, data, example)
        if len(sample["input_ids"]) <= data.max_length:
            samples.append(sample)
            prompts.append(prompt_text(tokenizer, data, example))
        else:
            longer += 1
    return samples, prompts, longer


def _encode(tokenizer: Any, data: DataConfig, example: Example) -> Sample:
    """Tokenise prompt + completion + end-of-sequence; the loss is on what follows the prompt.

    Both are encoded together and cut at the prompt's own length, as the harness does, so that
    training and evaluation see the same tokens. A chat template ends the turn in its own way.
    """
    context, completion, is_ended = prompt_text(tokenizer, data, example), example.answer, False
    if data.is_chat:
        context, completion, is_ended = chat_parts(tokenizer, data, example, context)
    assert isinstance(completion, str)  # noqa: S101 - turns are of chats alone
    spaces = len(context) - len(context.rstrip())
    if spaces:  # a trailing space belongs to the first token of the completion
        context, completion = context[:-spaces], context[-spaces:] + completion
    prompt_ids = context_ids(tokenizer, context)
    ids = text_ids(tokenizer, context + completion)
    if not is_ended and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    start = min(len(prompt_ids), len(ids) - 1)
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * start + ids[start:]}


def _pieces(tokenizer: Any, text: str, length: int) -> tuple[list[Sample], str]:
    """A text and its end-of-sequence as samples, and the first half of the first one as text.

    Each begins with the last token of the one before, so that the loss is on all tokens of the text
    but the first, and on each once.
    """
    ids = text_ids(tokenizer, text)
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    cut = [ids[start : start + length] for start in range(0, len(ids) - 1, length - 1)]
    samples: list[Sample] = [
        {"input_ids": piece, "labels": [IGNORED_LABEL, *piece[1:]]} for piece in cut
    ]
    half = ids[: max(1, min(len(ids), length) // 2)]
    return samples, str(tokenizer.decode(half, skip_special_tokens=True))


def typical_sample(tokenizer: Any, samples: Sequence[Sample]) -> SampleText:
    """The text of one of median length, whatever their order."""
    by_length = sorted(samples, key=lambda sample: (len(sample["input_ids"]), sample["input_ids"]))
    sample = by_length[len(by_length) // 2]
    ids, start = sample["input_ids"], sum(label == IGNORED_LABEL for label in sample["labels"])
    context, learned = (str(tokenizer.decode(part)) for part in (ids[:start], ids[start:]))
    if len(context) > _SHOWN:
        context = f"{_CUT}{context[-_SHOWN:]}"
    if len(learned) > _SHOWN:  # how it ends counts too
        learned = f"{learned[: _SHOWN * 2 // 3]}{_CUT}{learned[-_SHOWN // 3 :]}"
    return SampleText(context=context, learned=learned)


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
