"""A sentence of what the data say, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.results.repeats import SIGNIFICANT

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
    number = p_number(p_value)
    return f"p {number}" if number.startswith("<") else f"p = {number}"


def p_number(p_value: float) -> str:
    """Such as `0.013`, `< 0.001` or, as verdicts ask whether it is below 0.05, `0.0496`."""
    if p_value < 0.001:
        return "< 0.001"
    digits = 2
    while float(f"{p_value:.{digits}g}") >= SIGNIFICANT > p_value:
        digits += 1
    return f"{p_value:.{digits}g}"
