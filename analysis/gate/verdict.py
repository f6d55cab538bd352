"""Whether a model meets a criterion, as far as its items can tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from analysis.gate.evidence import Evidence
from analysis.stats.intervals import Interval
from trainables.config import Constraint

PASSED, FAILED, CANNOT_TELL = 0, 1, 3
"""Exit codes; 2 is of faulty input."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one criterion.

    Attributes:
        outcome: `pass` if the whole interval meets the criterion, `fail` if none of it does, else
            `cannot tell`. Without an interval the value decides.
        interval: None for a metric that is no mean over items.
        needed: items at which an interval around this value decides; None if it does, or if no
            number would.
    """

    criterion: Constraint
    value: float
    outcome: Literal["pass", "fail", "cannot tell"]
    interval: Interval | None = None
    needed: int | None = None

    def __str__(self) -> str:
        """Such as `pass: forgetting/mean <= 0.02: 0.004 (-0.003 to 0.011, 2,000 items)`."""
        return f"{self.outcome}: {self.criterion}: {self.finding}"

    @property
    def finding(self) -> str:
        """The value, its interval and, if that cannot tell, how many items could."""
        if self.interval is None:
            return f"{_written(self.value)} (no interval: it is no mean over items)"
        low, high = map(_written, (self.interval.low, self.interval.high))
        text = f"{_written(self.value)} ({low} to {high}, {self.interval.n:,} items)"
        if self.outcome != "cannot tell":
            return text
        if self.needed is None:
            return f"{text}; at this value no number of items can tell"
        return f"{text}; about {self.needed:,} items would tell"


def judge(criterion: Constraint, value: float, evidence: Evidence | None) -> Verdict:
    """The verdict on a criterion; `evidence`: None for a metric that is no mean over items."""
    if evidence is None:
        return Verdict(criterion, value, "pass" if criterion.holds(value) else "fail")
    interval = evidence.interval()
    ends = {criterion.holds(interval.low), criterion.holds(interval.high)}
    if len(ends) == 1:
        return Verdict(criterion, value, "pass" if ends.pop() else "fail", interval)
    needed = evidence.items_to_decide(criterion.bound)
    return Verdict(criterion, value, "cannot tell", interval, needed)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """1 if any criterion fails, else 3 if the items of any cannot tell, else 0."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if "fail" in outcomes:
        return FAILED
    return CANNOT_TELL if "cannot tell" in outcomes else PASSED


def _written(value: float) -> str:
    return f"{round(value, 12) + 0.0:.4g}"  # no -0
