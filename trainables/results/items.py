"""Per-item outcomes on disk: one JSON line per item."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainables.files.disk import write_whole
from trainables.results.records import ItemScore


def items_file(attempt_dir: Path, step: int) -> Path:
    """Where an attempt writes the items of its evaluation after an optimizer step."""
    return attempt_dir / "items" / f"step_{step:08d}.jsonl"


def write_items(file: Path, items: Sequence[ItemScore]) -> None:
    """Create or replace the file atomically."""
    write_whole(file, "".join(f"{item.model_dump_json()}\n" for item in items))


def read_items(file: Path) -> list[ItemScore]:
    """Items as written by `write_items`."""
    return parse_items(file.read_bytes())


def parse_items(content: bytes) -> list[ItemScore]:
    """Items from the content of a file written by `write_items`."""
    return [ItemScore.model_validate_json(line) for line in content.splitlines()]
