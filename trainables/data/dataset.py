"""Training data as tokens, with the loss on the completion, or on all of a text."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, NamedTuple, TypedDict, TypeVar

from trainables.config import DataConfig
from trainables.data.chat_template import chat_parts, prompt_text
from trainables.data.chats import Example
from trainables.data.row_files import UnusableRow, mostly_unusable
from trainables.data.rows import Rendered, Source, as_replay, load_rows, row_examples
from trainables.errors import Fault, UserError
from trainables.records.schema import SampleText

IGNORED_LABEL = -100
# Characters of a sample's context, and of what is learned, that are shown.
_SHOWN, _CUT = 300, " ... "
T = TypeVar("T")


class Sample(TypedDict):
    """One tokenised sample; label `IGNORED_LABEL` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


def labelled(sample: Sample) -> int:
    """How many of a sample's tokens the loss is on, each predicted from those before it."""
    return sum(label != IGNORED_LABEL for label in sample["labels"][1:])


@dataclass(frozen=True)
class TokenizedData:
    """Both splits.

    Attributes:
        train, validation: samples; those of a row are in the same split.
        skipped: number of samples to train on that were longer than `max_length` and left out.
        validation_skipped: as `skipped`, of the held-out samples.
        prompts: texts before completions, of held-out rows first, in random order; once stored,
            those of KL drift alone.
        replayed: how many of the training samples, the last ones, are of `data.replay`.
        replay_distinct: how many of these there are before they are repeated.
        replay_skipped: as `skipped`, of the samples drawn from `data.replay`.
        replayed_tokens: share of the learned tokens that the replayed samples have.
        unlearned: number of answers in the chats to train on that are context alone, as `answers:
            last` has it, or blank; none that are marked so, nor of `data.replay`.
        merged, replay_merged: number of samples to train on, and drawn from `data.replay`, whose
            completion begins within the prompt's last token, so that its first part is not learned.
        unusable: number of rows, held out or not, that cannot be learned and were left out.
        first_unusable: why the first of them cannot be, and which it is; empty if there is none.
        replay_unusable, first_replay_unusable: the same, of the rows drawn from `data.replay`.
        questions: what is asked last before the answers that are trained on, replayed ones, too;
            nothing in texts; none once stored.
    """

    train: Sequence[Sample]
    validation: list[Sample]
    skipped: int
    prompts: list[str]
    validation_skipped: int = 0
    replayed: int = 0
    replay_distinct: int = 0
    replay_skipped: int = 0
    replayed_tokens: float = 0.0
    unlearned: int = 0
    merged: int = 0
    replay_merged: int = 0
    unusable: int = 0
    first_unusable: str = ""
    replay_unusable: int = 0
    first_replay_unusable: str = ""
    questions: Sequence[str] = ()


class _Encoded(NamedTuple):
    """The samples of one row, or of several.

    Attributes:
        samples: those of at most `max_length` tokens.
        prompts: the text before the completion of each of them.
        questions: what is asked last in each of them, unless they are texts.
        longer: how many samples are longer.
        unlearned: number of answers in their chats that are in no sample, but for too long ones.
        merged: how many samples' completion begins within the prompt's last token.
    """

    samples: list[Sample]
    prompts: list[str]
    questions: list[str]
    longer: int
    unlearned: int
    merged: int


def tokenize(data: DataConfig, tokenizer: Any, seed: int) -> TokenizedData:
    """Load, render, tokenise and split.

    The split is drawn from `seed`, which should be the sweep's, so that every trial trains on the
    same rows.

    Raises:
        UserError: faults of files and templates, most rows are unusable, or every sample is too
            long.
    """
    made, unusable = _usable(tokenizer, data, _numbered_examples(data, "path"), data.path)
    if data.validation_path:
        rows = _numbered_examples(data, "validation_path")
        held_out, more = _usable(tokenizer, data, rows, data.validation_path)
        unusable += more
    else:
        made = _shuffled(made, seed)
        count = data.held_out(len(made))
        held_out, made = made[:count], made[count:]
    train, validation = _joined(made), _joined(held_out)
    if not train.samples:
        rule = f"every one of the {train.longer} samples is longer than {data.max_length} tokens"
        raise UserError([Fault("data.max_length", rule, "raise it")])
    wanted = data.replay.beside(len(train.samples)) if data.replay else 0
    drawn, left_out = _drawn(tokenizer, data, seed, wanted)
    replayed = list(islice(cycle(drawn.samples), wanted))
    samples = [*train.samples, *replayed]
    return TokenizedData(
        train=samples,
        validation=validation.samples,
        skipped=train.longer,
        validation_skipped=validation.longer,
        prompts=[*_shuffled(validation.prompts, seed), *_shuffled(train.prompts, seed)],
        replayed=len(replayed),
        replay_distinct=min(len(drawn.samples), wanted),
        replay_skipped=drawn.longer,
        replayed_tokens=_learned_tokens(replayed) / _learned_tokens(samples),
        unlearned=train.unlearned,
        merged=train.merged,
        replay_merged=drawn.merged,
        unusable=len(unusable),
        first_unusable=_rule_of_first(unusable),
        replay_unusable=len(left_out),
        first_replay_unusable=_rule_of_first(left_out),
        questions=[*train.questions, *drawn.questions[:wanted]],
    )


def _shuffled(rows: Sequence[T], seed: int) -> list[T]:
    """The rows in random order, as files are often sorted."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - an order, not a secret
    return shuffled


def _numbered_examples(data: DataConfig, source: Source) -> list[tuple[int, Rendered]]:
    """What is learned from each row, with its index.

    Raises:
        UserError: as `row_examples` and `load_rows`.
    """
    return list(enumerate(row_examples(data, load_rows(data, source), source)))


def _usable(
    tokenizer: Any,
    data: DataConfig,
    rows: Iterable[tuple[int, Rendered]],
    location: str,
    wanted: float = math.inf,
) -> tuple[list[_Encoded], list[Fault]]:
    """The samples of each row, until there are as many as wanted, and faults of unusable rows.

    Raises:
        UserError: most of the rows are unusable.
    """
    made: list[_Encoded] = []
    unusable: list[Fault] = []
    samples = 0
    for index, examples in rows:
        if samples >= wanted:
            break
        try:
            made.append(_encode_row(tokenizer, data, examples))
            samples += len(made[-1].samples)
        except UnusableRow as error:
            unusable.append(error.at(index, location))
    ran_out = samples < wanted  # else these are but the first of the rows
    if ran_out and (faults := mostly_unusable(unusable, len(made) + len(unusable))):
        raise UserError(faults)
    return made, unusable


def _rule_of_first(unusable: Sequence[Fault]) -> str:
    return unusable[0].rule if unusable else ""


def _drawn(
    tokenizer: Any, data: DataConfig, seed: int, wanted: int
) -> tuple[_Encoded, list[Fault]]:
    """Samples of `data.replay`, as many as wanted if it has them, and faults of unusable rows.

    They are of rows in random order.

    Raises:
        UserError: faults of its files and templates, most rows drawn are unusable, or all its
            samples are too long.
    """
    if data.replay is None or not wanted:
        return _joined([]), []
    replayed = data.replay.as_data(data.max_length)
    try:
        rows = _shuffled(_numbered_examples(replayed, "path"), seed)
        made, unusable = _usable(tokenizer, replayed, rows, replayed.path, wanted)
    except UserError as error:
        raise UserError(as_replay(error.faults)) from error
    drawn = _joined(made)
    if not drawn.samples:
        rule = f"every sample of it is longer than {data.max_length} tokens"
        raise UserError([Fault("data.replay", rule, "raise data.max_length")])
    return drawn, unusable


def _learned_tokens(samples: Iterable[Sample]) -> int:
    return sum(len(s["labels"]) - s["labels"].count(IGNORED_LABEL) for s in samples)


def _encode_row(tokenizer: Any, data: DataConfig, examples: Rendered) -> _Encoded:
    """The samples of a row.

    Raises:
        UnusableRow: it cannot be learned.
    """
    if isinstance(examples, UnusableRow):
        raise examples
    samples, prompts, questions, longer, unlearned, merged = [], [], [], 0, 0, 0
    for example in examples:
        if data.text is not None:
            pieces, beginning = _pieces(tokenizer, str(example.answer), data.max_length)
            samples += pieces
            prompts.append(beginning)
            continue
        prompt = prompt_text(tokenizer, data, example)
        sample, is_merged = _encode(tokenizer, data, example, prompt)
        if len(sample["input_ids"]) <= data.max_length:
            samples.append(sample)
            prompts.append(prompt)
            questions.append(example.question)
            unlearned += example.unlearned
            merged += is_merged
        else:
            longer += 1
    return _Encoded(samples, prompts, questions, longer, unlearned, merged)


def _joined(rows: Sequence[_Encoded]) -> _Encoded:
    samples = [sample for row in rows for sample in row.samples]
    prompts = [prompt for row in rows for prompt in row.prompts]
    questions = [question for row in rows for question in row.questions]
    longer, unlearned = sum(row.longer for row in rows), sum(row.unlearned for row in rows)
    merged = sum(row.merged for row in rows)
    return _Encoded(samples, prompts, questions, longer, unlearned, merged)


def _encode(
    tokenizer: Any, data: DataConfig, example: Example, context: str
) -> tuple[Sample, bool]:
    """Tokenise context + completion + end-of-sequence; the loss is on what follows the context.

    Both are encoded together and cut at the prompt's own length, as the harness and TRL do, so that
    training and evaluation see the same tokens. A chat template ends the turn in its own way.

    Returns:
        The sample, and whether the context's tokens are not those that it begins with.
    """
    completion, is_ended = example.answer, False
    if data.is_chat:
        context, completion, is_ended = chat_parts(tokenizer, data, example, context)
    assert isinstance(completion, str)  # noqa: S101 - turns are of chats alone
    ids = text_ids(tokenizer, context + completion)
    if not is_ended and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    length, is_merged = _context_length(tokenizer, context, ids)
    start = min(length, len(ids) - 1)
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * start + ids[start:]}, is_merged


def _context_length(tokenizer: Any, context: str, ids: list[int]) -> tuple[int, bool]:
    """How many of the tokens are the context's, and whether they do not begin with these.

    A space at its end belongs to the completion, of whose first token it mostly is a part. A line
    break there, as after the header of a chat's turn, does so only where it is one.
    """
    context = context.rstrip(" \t")
    own = context_ids(tokenizer, context)
    if ids[: len(own)] != own and context != context.rstrip():
        own = context_ids(tokenizer, context.rstrip())
    return len(own), ids[: len(own)] != own


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
