"""Warnings about the training data, recorded with the base's scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainables.config import DataConfig, EvalSuite
from trainables.data.chat_template import answer_opening
from trainables.data.dataset import Sample, TokenizedData
from trainables.models.loading import ends

# A warning is given where replayed answers are this many times longer, or shorter, than the others.
_FAR = 2


def data_warnings(
    base: Any, tokenizer: Any, tokenized: TokenizedData, data: DataConfig, suite: EvalSuite
) -> list[str]:
    """Reasons why training on these data may not teach what the tasks ask for."""
    return [
        *_prompt_warnings(tokenizer, data, suite),
        *_turn_end_warnings(base, tokenizer, tokenized, data),
        *_unusable_row_warnings(tokenized),
        *_answer_warnings(tokenized, data),
        *_merged_token_warnings(tokenized, data),
        *_count_warnings(tokenized, data),
        *_replay_share_warnings(tokenized, data),
    ]


def overlap_warnings(
    tokenized: TokenizedData, asked: Mapping[str, Sequence[set[str]]]
) -> list[str]:
    """Warnings of tasks and held-out samples that are also trained on.

    Args:
        tokenized: the data.
        asked: by task, each item's texts that may be its question.
    """
    return [
        *_item_overlaps(tokenized.questions, asked),
        *_held_out_overlaps(tokenized),
    ]


def _prompt_warnings(tokenizer: Any, data: DataConfig, suite: EvalSuite) -> Iterator[str]:
    if not suite.tasks():
        return
    if data.is_chat != suite.chat_template:
        chats, asks = ("chats", "plain text") if data.is_chat else ("plain text", "a chat")
        yield (
            f"trained are {chats}, and eval.chat_template is {suite.chat_template}: the tasks ask "
            f"in {asks}"
        )
    if not (data.has_chats and suite.chat_template):
        return
    if _system_differs(data, suite):
        yield (
            f"data.system is {data.system!r}, and eval.system_instruction "
            f"{suite.system_instruction!r}: the tasks ask differently from the training"
        )
    if opening := answer_opening(tokenizer):
        yield (
            f"the chat template begins answers with {opening!r}, which the tasks do not ask for: "
            "set model.chat_template_args, such as {enable_thinking: false}"
        )


def _turn_end_warnings(
    base: Any, tokenizer: Any, tokenized: TokenizedData, data: DataConfig
) -> Iterator[str]:
    if not data.has_chats:
        return
    chat = tokenized.train[0 if data.is_chat else -1]  # the replayed samples are the last
    if end := _ignored_end(base, tokenizer, chat):
        yield (
            f"the chats' turns end in {end}, which is neither the tokenizer's eos_token nor an end "
            f'of generation, so generation goes on after it: set model.eos_token: "{end}"'
        )


def _ignored_end(base: Any, tokenizer: Any, chat: Sample) -> str | None:
    """The special token that a chat ends in, if generation would not stop there."""
    written = (token for token in reversed(chat["input_ids"]) if tokenizer.decode([token]).strip())
    end = next(written)  # some templates put a line break after it
    added = tokenizer.added_tokens_decoder.get(end)
    if added is None or not added.special or end in (tokenizer.eos_token_id, *ends(base)):
        return None
    return str(added.content)


def _system_differs(data: DataConfig, suite: EvalSuite) -> bool:
    """Whether chats are known to be trained with another system turn than tasks have."""
    is_known = data.system is not None or data.chat_template
    is_fixed = data.system is None or not ("{{" in data.system or "{%" in data.system)
    return is_known and is_fixed and data.system != suite.system_instruction


def _unusable_row_warnings(tokenized: TokenizedData) -> Iterator[str]:
    left_out = "cannot be learned and were left out; the first"
    if count := tokenized.unusable:
        yield f"{count} row(s) of the data {left_out}: {tokenized.first_unusable}"
    if count := tokenized.replay_unusable:
        drawn = "row(s) drawn from data.replay"
        yield f"{count} {drawn} {left_out}: {tokenized.first_replay_unusable}"


def _answer_warnings(tokenized: TokenizedData, data: DataConfig) -> Iterator[str]:
    learned = len(tokenized.train) - tokenized.replayed
    answers = learned + tokenized.unlearned
    if data.answers == "all" and tokenized.unlearned:
        yield f"{tokenized.unlearned} of {answers} answers are blank, and not learned"
    elif tokenized.unlearned:
        yield f"{learned} of {answers} answers are learned; data.answers: all learns the others too"


def _merged_token_warnings(tokenized: TokenizedData, data: DataConfig) -> Iterator[str]:
    replays_chats = data.replay is not None and data.replay.is_chat
    for count, source, is_chat in (
        (tokenized.merged, "data", data.is_chat),
        (tokenized.replay_merged, "data.replay", replays_chats),
    ):
        if count:
            remedy = (
                f": begin {source}.completion with a space, or end {source}.prompt otherwise"
                if not is_chat
                else " (the chat template ends what comes before an answer so)"
            )
            yield (
                f"{count} completion(s) of {source} begin within the last token of the prompt, and "
                f"what is in that token is not learned{remedy}"
            )


def _count_warnings(tokenized: TokenizedData, data: DataConfig) -> Iterator[str]:
    longer = f"are longer than data.max_length = {data.max_length} tokens and were left out"
    if tokenized.skipped:
        samples = len(tokenized.train) - tokenized.replayed + tokenized.skipped
        yield f"{tokenized.skipped} of {samples} training samples {longer}"
    if tokenized.validation_skipped:
        held_out = len(tokenized.validation) + tokenized.validation_skipped
        yield f"{tokenized.validation_skipped} of {held_out} held-out samples {longer}"
    if tokenized.replay_skipped:
        drawn = tokenized.replay_distinct + tokenized.replay_skipped
        yield f"{tokenized.replay_skipped} of {drawn} samples drawn from data.replay {longer}"
    if tokenized.replay_distinct < tokenized.replayed:
        times = tokenized.replayed / tokenized.replay_distinct
        yield (
            f"data.replay has {tokenized.replay_distinct} samples for the {tokenized.replayed} of "
            f"its share: each is trained on {times:.3g} times an epoch"
        )


def _replay_share_warnings(tokenized: TokenizedData, data: DataConfig) -> Iterator[str]:
    if data.replay is None:
        return
    share, tokens = data.replay.share, tokenized.replayed_tokens
    samples = tokenized.replayed / len(tokenized.train)
    longer = _odds(tokens) / _odds(samples)  # answers to replay than others, on average
    if not 1 / _FAR <= longer <= _FAR:
        odds = _odds(share) / longer
        yield (
            f"data.replay.share = {share:g} of the samples is {tokens:.2g} of the tokens that the "
            f"loss is averaged over; data.replay.share={odds / (1 + odds):.3g} would be {share:g} "
            "of them"
        )


def _odds(share: float) -> float:
    return share / (1 - share)


def _item_overlaps(
    trained: Sequence[str], asked: Mapping[str, Sequence[set[str]]]
) -> Iterator[str]:
    known = set(map(_plain, trained)) - {""}
    for label, items in asked.items():
        if count := sum(not known.isdisjoint(map(_plain, texts)) for texts in items):
            yield (
                f"{count} of {len(items)} items of {label} ask word for word what is trained on, "
                "so their scores tell what is memorised: leave these rows out of the data"
            )


def _held_out_overlaps(tokenized: TokenizedData) -> Iterator[str]:
    held_out = [tuple(sample["input_ids"]) for sample in tokenized.validation]
    wanted = set(held_out)
    found = {ids for sample in tokenized.train if (ids := tuple(sample["input_ids"])) in wanted}
    if count := sum(ids in found for ids in held_out):
        yield (
            f"{count} of {len(held_out)} held-out samples are also trained on, so the validation "
            "loss tells what is memorised: leave repeated rows out of the data"
        )


def _plain(text: str) -> str:
    """Without the differences in space that templates make."""
    return " ".join(text.split())
