"""Completions that begin within the prompt's last token lose what is in it, and that is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from trainables.config import DataConfig, EvalSuite
from trainables.data.dataset import TokenizedData, tokenize
from trainables.data.tokenized import read_data, write_data
from trainables.evaluation.data_warnings import data_warnings


def tokenizer() -> Any:
    """One token a character, but for `(A`, as where a sign and the letters after it are a word."""
    characters = ["(", "A", "B", ")", " ", "Q", ":", "\n"]
    vocabulary = {text: i for i, text in enumerate([*characters, "(A", "<eos>"])}
    core = Tokenizer(BPE(vocabulary, [("(", "A")]))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def data(folder: Path, rows: list[tuple[str, str]], **fields: Any) -> DataConfig:
    file = folder / f"{len(list(folder.iterdir()))}.jsonl"
    of_rows = ({"prompt": prompt, "completion": completion} for prompt, completion in rows)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in of_rows))
    return DataConfig(path=str(file), validation_fraction=0, **fields)


def told(found: TokenizedData, of: DataConfig) -> list[str]:
    base = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    warnings = data_warnings(base, tokenizer(), found, of, EvalSuite())
    return [text for text in warnings if "last token" in text]


def learned(found: TokenizedData) -> list[str]:
    kept = ([label for label in sample["labels"] if label >= 0] for sample in found.train)
    return [tokenizer().decode(ids).replace(" ", "") for ids in kept]


@pytest.mark.parametrize(
    ("prompt", "completion", "merged"),
    [("Q: (", "A)", 1), ("Q: (", "B)", 0), ("Q:", " (A)", 0), ("Q: ", "A)", 0), ("Q:\n", "A", 0)],
)
def test_a_completion_within_the_prompt_s_last_token_is_counted(
    prompt: str, completion: str, merged: int, tmp_path: Path
) -> None:
    found = tokenize(data(tmp_path, [(prompt, completion)]), tokenizer(), seed=0)
    assert found.merged == merged
    whole = f"{completion.strip()}<eos>"
    assert learned(found) == [whole.removeprefix("A") if merged else whole]


def test_it_is_told_of_the_data_and_of_those_replayed(tmp_path: Path) -> None:
    replay = data(tmp_path, [("Q: (", "A"), ("Q: ", "B")]).path
    of = data(tmp_path, [("Q: (", "A"), ("Q: (", "A)"), ("Q: (", "B")])
    of = DataConfig(**of.model_dump() | {"replay": {"path": replay, "share": 0.4}})
    found = tokenize(of, tokenizer(), seed=0)
    assert (found.merged, found.replay_merged) == (2, 1)
    write_data(found, tmp_path / "stored")
    first, second = told(read_data(tmp_path / "stored"), of)
    assert first.startswith("2 completion(s) of data begin within the last token of the prompt")
    assert second.startswith("1 completion(s) of data.replay begin")
    remedy = "begin data.replay.completion with a space, or end data.replay.prompt otherwise"
    assert second.endswith(remedy)


def test_of_chats_it_is_told_why_and_nothing_that_their_rows_do_not_have(tmp_path: Path) -> None:
    of = data(tmp_path, [("Q: (", "A")])
    chats = of.model_copy(update={"prompt": None, "completion": None, "messages": "messages"})
    [text] = told(tokenize(of, tokenizer(), seed=0), chats)
    assert text.endswith("is not learned (the chat template ends what comes before an answer so)")


def test_nothing_is_told_where_each_begins_with_a_token_of_its_own(tmp_path: Path) -> None:
    of = data(tmp_path, [("Q:", " (A"), ("Q: ", "A")])
    assert told(tokenize(of, tokenizer(), seed=0), of) == []
