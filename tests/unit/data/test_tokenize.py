"""From rows to tokens: where the loss is, which rows are held out, and what is replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import faults
from hypothesis import given
from hypothesis import strategies as st

from trainables.config import DataConfig
from trainables.data.chats import Example
from trainables.data.dataset import (
    IGNORED_LABEL,
    _encode,
    _pieces,
    tokenize,
    training_order,
)

ROWS = [{"prompt": f"relay {i} 5 18 =", "completion": f" {i % 20}"} for i in range(20)]


class Characters:
    """A tokenizer with one token a character; each turn of a chat ends in a bar."""

    eos_token_id = 0
    bos_token = "\x01"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(
        self, messages: list[dict[str, str]], add_generation_prompt: bool = False, **_: Any
    ) -> str:
        turns = (f"<{turn['role']}>{turn['content'].strip()}|\n" for turn in messages)
        return self.bos_token + "".join(turns) + "<assistant>" * add_generation_prompt


class Merging(Characters):
    """`abcd` is one token, and so are two line breaks."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        text = text.replace("abcd", "w").replace("\n\n", "N")
        return super().__call__(text, add_special_tokens)


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(folder / name)


def config(path: str, **fields: Any) -> DataConfig:
    return DataConfig(**{"path": path, "validation_fraction": 0} | fields)


def learned(sample: Any) -> list[int]:
    return [label for label in sample["labels"] if label != IGNORED_LABEL]


def tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_loss_is_on_completion_and_end_alone(tokenizer: Any, tmp_path: Path) -> None:
    found = tokenize(config(jsonl(tmp_path, ROWS)), tokenizer, seed=0).train
    samples = {tuple(sample["input_ids"]): sample["labels"] for sample in found}
    assert len(samples) == len(ROWS)
    for row in ROWS:
        prompt = [tokenizer.bos_token_id, *tokens(tokenizer, row["prompt"])]
        answer = [*tokens(tokenizer, row["completion"]), tokenizer.eos_token_id]
        assert samples[*prompt, *answer] == [IGNORED_LABEL] * len(prompt) + answer


@pytest.mark.parametrize(
    ("prompt", "spaces"), [("ab  ", "  "), ("ab \n", ""), ("ab\n ", " "), ("ab\t", "\t")]
)
def test_a_trailing_space_belongs_to_the_completion_and_a_line_break_to_the_prompt(
    prompt: str, spaces: str, tmp_path: Path
) -> None:
    rows = [{"prompt": prompt, "completion": "cd"}]
    (sample,) = tokenize(config(jsonl(tmp_path, rows)), Characters(), seed=0).train
    assert sample["input_ids"] == [1, *map(ord, prompt + "cd"), 0]
    after = [*map(ord, spaces + "cd"), 0]
    assert sample["labels"] == [IGNORED_LABEL] * (1 + len(prompt) - len(spaces)) + after


@pytest.mark.parametrize(
    ("prompt", "completion", "merged", "ids", "kept"),
    [("abc", "d", True, "w", 0), ("a\n", "\nb", False, "aNb", 2)],
)
def test_a_completion_may_begin_within_a_token(
    prompt: str, completion: str, merged: bool, ids: str, kept: int
) -> None:
    """Within the prompt's last token its beginning is not learned."""
    data = DataConfig(path="x")
    sample, is_merged = _encode(Merging(), data, Example(prompt, completion), prompt)
    assert is_merged is merged
    assert sample["input_ids"] == [1, *map(ord, ids), 0]
    assert learned(sample) == sample["input_ids"][-kept - 1 :]


def test_longer_samples_are_left_out_counted_and_not_asked(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * size, "completion": "b"} for size in range(1, 11)]
    held_out = jsonl(tmp_path, rows[:7], "held_out.jsonl")
    data = config(jsonl(tmp_path, rows), max_length=8, validation_path=held_out)
    found = tokenize(data, Characters(), seed=0)
    for samples in (found.train, found.validation):
        assert sorted(len(sample["input_ids"]) for sample in samples) == [4, 5, 6, 7, 8]
    assert (found.skipped, found.validation_skipped) == (5, 2)
    assert {len(prompt) for prompt in found.prompts} == {1, 2, 3, 4, 5}
    (fault,) = faults(tokenize, data.model_copy(update={"max_length": 3}), Characters(), 0)
    assert fault.field == "data.max_length"
    assert "every one of the 10 samples is longer than 3 tokens" in fault.rule


def texts(samples: Any) -> list[tuple[int, ...]]:
    return [tuple(sample["input_ids"]) for sample in samples]


def test_the_split_is_disjoint_complete_and_decided_by_the_seed(tmp_path: Path) -> None:
    data = config(jsonl(tmp_path, ROWS), validation_fraction=0.24)  # 4.8 of 20
    one, same, other = (tokenize(data, Characters(), seed) for seed in (3, 3, 4))
    assert len(one.validation) == 5
    assert not set(texts(one.validation)) & set(texts(one.train))
    assert len({*texts(one.validation), *texts(one.train)}) == len(ROWS)
    assert (texts(one.train), texts(one.validation)) == (texts(same.train), texts(same.validation))
    assert set(texts(one.validation)) != set(texts(other.validation))


CHAT = [
    {"role": role, "content": content}
    for role, content in (
        ("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "bc"),
    )
]  # fmt: skip


def test_of_a_chat_the_last_answer_is_learned_as_the_template_ends_it(tmp_path: Path) -> None:
    found = tokenize(config(jsonl(tmp_path, [{"t": CHAT}]), messages="t"), Characters(), seed=0)
    asked = "\x01<system>s|\n<user>q|\n<assistant>a|\n<user>r|\n<assistant>"
    assert found.prompts == [asked]
    (sample,) = found.train
    assert sample["input_ids"] == [*map(ord, f"{asked}bc|\n")]
    assert learned(sample) == [*map(ord, "bc|\n")]


@pytest.mark.parametrize("completion", ["cd", " cd", "cd "])
def test_prompt_and_completion_are_turns_in_a_chat_template(
    completion: str, tmp_path: Path
) -> None:
    rows = [{"prompt": "ab", "completion": completion}]
    data = config(jsonl(tmp_path, rows), chat_template=True)
    (sample,) = tokenize(data, Characters(), seed=0).train
    asked, answered = "\x01<user>ab|\n<assistant>", "cd|\n"
    assert sample["input_ids"] == [*map(ord, asked + answered)]
    assert learned(sample) == [*map(ord, answered)]


def test_chats_without_a_system_s_turn_begin_with_the_one_given(tmp_path: Path) -> None:
    turns = (CHAT, CHAT[1:], [{"role": "developer", "content": "d"}, *CHAT[1:]])
    path = jsonl(tmp_path, [{"t": each, "s": "x"} for each in turns])
    data = config(path, messages="t", system="You are {{ s }}.", answers="all")
    begins = [text.partition("\n")[0] for text in tokenize(data, Characters(), 0).prompts]
    expected = ["\x01<developer>d|", "\x01<system>You are x.|", "\x01<system>s|"]
    assert sorted(begins) == sorted(expected * 2)
    rows = [{"prompt": "q", "completion": "a", "s": s} for s in ("be brief", "")]
    data = config(jsonl(tmp_path, rows), chat_template=True, system="{{ s }}")
    asked = "<user>q|\n<assistant>"
    expected = [f"\x01<system>be brief|\n{asked}", f"\x01{asked}"]
    assert sorted(tokenize(data, Characters(), 0).prompts) == expected


def test_a_training_sees_every_sample_once_an_epoch_each_time_in_another_order() -> None:
    order = training_order(5, 12, seed=0)
    first, second = order[:5], order[5:10]
    assert sorted(first) == sorted(second) == list(range(5))
    assert len({*map(tuple, (first, second, range(5)))}) == 3
    assert training_order(5, 7, seed=0) == order[:7]
    assert training_order(5, 12, seed=1) != order


def test_replayed_rows_make_up_their_share_of_the_samples(tmp_path: Path) -> None:
    own = jsonl(tmp_path, [{"prompt": "q", "completion": letter} for letter in "abcdefghij"])
    general = jsonl(tmp_path, [{"words": str(n)} for n in range(9)], "general.jsonl")

    def letters(share: float, seed: int = 0, **fields: Any) -> str:
        templates = {"prompt": "w", "completion": "{{ words }}"}
        replay = {"path": general, "share": share, **templates, **fields}
        data = config(own, validation_fraction=0.2, replay=replay)
        found = tokenize(data, Characters(), seed)
        assert {sample["input_ids"][1] for sample in found.validation} == {ord("q")}
        assert found.prompts == ["q"] * 10
        assert found.replayed == len(found.train) - 8
        return "".join(chr(sample["input_ids"][-2]) for sample in found.train)

    some = letters(0.2)
    assert set(some[:8]) <= set("abcdefghij")
    assert len(set(some[8:])) == len(some[8:]) == 2  # of ten
    assert set(some[8:]) <= set("012345678")
    assert letters(0.2) == some
    assert {letters(0.2, seed)[8:] for seed in range(5)} != {some[8:]}
    assert sorted(letters(0.5, limit=4)[8:]) == sorted("0123" * 2)  # too few are repeated
    assert len(letters(0.001)) == 9


@given(st.text("abc\0", max_size=30), st.integers(2, 12))
def test_of_a_plain_text_every_token_but_the_first_is_learned_once(text: str, length: int) -> None:
    class Plain(Characters):
        bos_token: Any = None

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return super().__call__(text, False)

    pieces, beginning = _pieces(Plain(), text, length)
    assert all(2 <= len(piece["input_ids"]) <= length for piece in pieces)
    after = [label for piece in pieces for label in learned(piece)]
    assert after == [*map(ord, text.removesuffix("\0")), 0][1:]  # which has its end once
    assert all(len(piece["input_ids"]) == length for piece in pieces[:-1])
    assert text.startswith(beginning.rstrip("\0"))
    assert len(beginning) <= max(1, length // 2)


def test_plain_texts_have_their_beginning_and_end_and_are_in_one_split(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"body": text} for text in ("relay 1 5 18 = 2", "max 4 7", "", " \n", None)]
    data = config(jsonl(tmp_path, rows), text="body")
    found = tokenize(data, tokenizer, seed=0)
    whole = [[*tokenizer(row["body"])["input_ids"], tokenizer.eos_token_id] for row in rows[:2]]
    assert sorted(sample["input_ids"] for sample in found.train) == sorted(whole)
    assert {ids[0] for ids in whole} == {tokenizer.bos_token_id}
    path = jsonl(tmp_path, [{"text": letter * 50} for letter in "abcdefgh"])
    split = tokenize(
        config(path, text="text", validation_fraction=0.25, max_length=8), Characters(), seed=0
    )
    letters = [{max(s["input_ids"]) for s in part} for part in (split.train, split.validation)]
    assert (len(letters[0]), len(letters[1]), letters[0] & letters[1]) == (6, 2, set())
