"""Markdown of text that users wrote: it stays text, wherever it stands in a card."""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis.results.formatting import one_line

# What begins code, links, images, tags, cells and escapes.
_ACTIVE = re.compile(r"[\\`\[\]|]|<(?=[A-Za-z/!?])|&(?=#?\w+;)")


def escaped(text: object) -> str:
    """A line of text that Markdown shows as it is."""
    return _ACTIVE.sub(r"\\\g<0>", one_line(str(text)))


def code(text: object) -> str:
    """A span of code whose fence is longer than any in the text."""
    line = one_line(str(text))
    fence = _fence(line, 1)
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in the text, such as a prompt's own."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells in Markdown."""
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fence(text: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))
