"""Texts that the tokenizer does not know are told of: training would learn its unknown token."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from trainables.config import DataConfig, EvalSuite
from trainables.data.dataset import tokenize
from trainables.evaluation.data_warnings import data_warnings


def of_words(unknown: str = "<unk>") -> Any:
    """A tokenizer of the words `a` and `b` alone."""
    words = {text: i for i, text in enumerate(("a", "b", "<eos>", "<bos>", "<unk>"))}
    core = Tokenizer(WordLevel(words, unk_token=unknown))
    core.pre_tokenizer = WhitespaceSplit()
    special = {"unk_token": unknown, "eos_token": "<eos>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def told(folder: Path, rows: list[tuple[str, str]], tokenizer: Any) -> list[str]:
    of_rows = ({"prompt": prompt, "completion": completion} for prompt, completion in rows)
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in of_rows))
    data = DataConfig(path=str(folder / "rows.jsonl"), validation_fraction=0)
    base = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    return data_warnings(base, tokenizer, tokenize(data, tokenizer, 0), data, EvalSuite())


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([("a a a a a a a a a", " c"), ("a", " b")], "25% of the learned tokens"),
        ([("c a c a", " b"), ("a", " b")], "22% of the tokens trained on"),
    ],
    ids=["of the answers", "of all"],
)
def test_the_share_of_tokens_that_are_unknown_is_told(
    rows: list[tuple[str, str]], share: str, tmp_path: Path
) -> None:
    assert told(tmp_path, rows, of_words()) == [
        f"{share} are <unk>, which stands for what the tokenizer does not know: name a model whose "
        "tokenizer knows these texts"
    ]


def test_a_few_are_not_told(tmp_path: Path) -> None:
    assert told(tmp_path, [("a a a a a c", " b b b b b b b b b b")], of_words()) == []


@pytest.mark.parametrize("other", ["<eos>", "<bos>"])
def test_none_is_told_where_the_token_also_begins_or_ends_texts(other: str, tmp_path: Path) -> None:
    """As in GPT-2, whose tokenizer knows every byte."""
    assert told(tmp_path, [(f"{other} a", f" b{other}")], of_words(other)) == []
