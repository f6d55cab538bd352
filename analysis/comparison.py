"""Two models compared on the same questions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from analysis.stats.intervals import Interval
from trainables.results.repeats import LEVEL


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions of a role's tasks.

    Attributes:
        difference: first minus second accuracy, mean over tasks. The interval includes 0 if the
            test does not tell the two apart: now and then an interval alone would.
        test: of that difference, with tasks weighted equally: `McNemar` if every question is right
            or wrong, `sign flips` if they are graded, by one task or as the mean over several.
        p_value: of the test.
        differing: number of questions on which the two differ.
        picked_from: number of comparisons that this is the best of; the interval and the p-value
            hold for all of them at once (Bonferroni).
        over_repeats: the same difference of the means over both models' repeats with other seeds;
            None if neither has a complete one. The base needs none.
        is_once: whether one of them has no complete one, so that its own run stands for them. It
            was picked, as if by luck: it can but refute.
        seeds: its interval; None for fewer than two repeats of either.
        diverged: how many repeats of the two are not in that, as they diverged.
    """

    difference: Interval
    test: Literal["McNemar", "sign flips"]
    p_value: float
    differing: int
    picked_from: int
    over_repeats: float | None = None
    is_once: bool = False
    seeds: Interval | None = None
    diverged: int = 0

    @property
    def is_shown(self) -> bool:
        """Whether test and interval tell the two apart, and repeats, if there are any, agree."""
        return self.p_value < 1 - LEVEL and self.difference.excludes_0 and self._is_repeated

    def negated(self) -> Comparison:
        """The comparison by what falls as accuracy rises, such as forgetting."""
        return replace(self, difference=self.difference.negated())

    @property
    def _is_repeated(self) -> bool:
        if self.diverged or self.over_repeats is None:
            return not self.diverged
        is_alike = self.over_repeats * self.difference.estimate > 0
        return is_alike and (self.seeds is None or self.seeds.excludes_0)
