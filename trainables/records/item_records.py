"""Outcomes per item: as JSON lines, and of two models as pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainables.records.schema import ItemScore
from trainables.storage.disk import write_whole


def items_file(attempt_dir: Path, evaluation: str) -> Path:
    """Where an attempt writes the items of an evaluation, by its `Measurement.name`."""
    return attempt_dir / "items" / f"{evaluation}.jsonl"


def write_items(file: Path, items: Sequence[ItemScore]) -> None:
    """Create or replace the file atomically."""
    lines = (item.model_dump_json(exclude_defaults=True) for item in items)
    write_whole(file, "".join(f"{line}\n" for line in lines))


def without_texts(items: Sequence[ItemScore]) -> list[ItemScore]:
    """Items without prompts and targets, which only the base keeps."""
    return [item.model_copy(update={"prompt": "", "target": ""}) for item in items]


def read_items(file: Path) -> list[ItemScore]:
    """Items as written by `write_items`."""
    return [ItemScore.model_validate_json(line) for line in file.read_bytes().splitlines()]


@dataclass(frozen=True)
class PairedItem:
    """One document, answered by the base and by a tuned model."""

    base: ItemScore
    tuned: ItemScore

    @property
    def is_forgotten(self) -> bool:
        """Whether it went from right to wrong; right is a score above 0.5."""
        return self.base.score > 0.5 >= self.tuned.score

    @property
    def is_gained(self) -> bool:
        """Whether it went from wrong to right."""
        return self.tuned.score > 0.5 >= self.base.score


def pair_items(
    base: Sequence[ItemScore], tuned: Sequence[ItemScore]
) -> dict[str, list[PairedItem]]:
    """Pair the items that both have, by task, in the base's order.

    They are matched on (task, doc_hash, filter) and, if a document is in a task twice, in order.
    """
    waiting: dict[tuple[str, str, str], list[ItemScore]] = {}
    for item in reversed(tuned):
        waiting.setdefault((item.task, item.doc_hash, item.filter), []).append(item)
    pairs: dict[str, list[PairedItem]] = {}
    for item in base:
        partners = waiting.get((item.task, item.doc_hash, item.filter))
        if partners:
            pairs.setdefault(item.task, []).append(PairedItem(item, partners.pop()))
    return pairs
