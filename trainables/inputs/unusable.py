"""Rows that cannot be learned: left out, unless they are most of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainables.errors import Fault, UserError


class UnusableRow(UserError):
    """One row cannot be learned, for one fault; others may be."""

    def at(self, index: int, location: str) -> Fault:
        """The fault with the row's number."""
        (fault,) = self.faults
        return replace(fault, rule=f"{fault.rule}: row {index + 1} of {location}")


def faults_of_most(unusable: Sequence[Fault], rows: int) -> list[Fault]:
    """The first fault, if more than half of the rows are unusable: then a setting is wrong."""
    if 2 * len(unusable) <= rows:
        return []
    first = unusable[0]
    share = f"{len(unusable)} of {rows} rows ({len(unusable) / rows:.0%}) cannot be learned"
    return [replace(first, rule=f"{first.rule}; {share}")]
