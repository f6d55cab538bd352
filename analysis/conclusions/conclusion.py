"""A sentence of what the data say, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["shown", "open", "too few data"]


@dataclass(frozen=True)
class Conclusion:
    """One sentence and its evidence.

    Attributes:
        verdict: `open` if the data do not decide, `too few data` if they cannot.
    """

    statement: str
    evidence: str
    verdict: Verdict = "shown"


def p_text(p_value: float) -> str:
    """Such as `p = 0.013`, `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
