"""What is both trained on and measured with: scores on it tell what was learned by heart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trainables.inputs.data import TokenizedData


def overlap_warnings(
    tokenized: TokenizedData, asked: Mapping[str, Sequence[set[str]]]
) -> list[str]:
    """Tasks that ask what is trained on, and held-out samples that are also trained on.

    Args:
        tokenized: the data.
        asked: by task, of each item the texts that may be its question.
    """
    return [*_of_items(tokenized.questions, asked), *_of_held_out(tokenized)]


def _of_items(trained: Sequence[str], asked: Mapping[str, Sequence[set[str]]]) -> Iterator[str]:
    known = set(map(_plain, trained)) - {""}
    for label, items in asked.items():
        if count := sum(not known.isdisjoint(map(_plain, texts)) for texts in items):
            yield (
                f"{count} of {len(items)} items of {label} ask word for word what is trained on, "
                "so their scores tell what is learned by heart: leave these rows out of the data"
            )


def _of_held_out(tokenized: TokenizedData) -> Iterator[str]:
    held_out = [tuple(sample["input_ids"]) for sample in tokenized.validation]
    wanted = set(held_out)
    found = {ids for sample in tokenized.train if (ids := tuple(sample["input_ids"])) in wanted}
    if count := sum(ids in found for ids in held_out):
        yield (
            f"{count} of {len(held_out)} held-out samples are also trained on, so the validation "
            "loss tells what is learned by heart: leave repeated rows out of the data"
        )


def _plain(text: str) -> str:
    """Without the differences in space that templates make."""
    return " ".join(text.split())
