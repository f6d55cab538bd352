"""Running tallies over all trials, so that a suggestion costs the same however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from trainables.records.schema import TrialRecord, TrialStatus
from tune.search.space import Params

_Point = frozenset[tuple[str, object]]


class SearchHistory:
    """The trials of a sweep and tallies over them.

    Args:
        records: records of the sweep.
        warm: records of other sweeps; only their points are used.

    Attributes:
        next_number: the lowest number not used by any trial.
        searched: number of trials that do not confirm others.
    """

    def __init__(self, records: Iterable[TrialRecord], warm: Iterable[TrialRecord]) -> None:
        self._records: dict[int, TrialRecord] = {}
        self._points: Counter[_Point] = Counter()  # of this sweep alone
        self._tries: Counter[_Point] = Counter()
        self._confirming: set[int] = set()
        self._runs: Counter[tuple[_Point, int]] = Counter()  # by seed
        self._gpu_hours = Fraction()  # exact, so the order in which trials end does not matter
        self.next_number = self.searched = 0
        for record in warm:
            self._count_try(record, 1)
        for record in records:
            self.take(record)

    @property
    def records(self) -> Iterable[TrialRecord]:
        """The latest record of each of the sweep's trials."""
        return self._records.values()

    @property
    def gpu_hours(self) -> float:
        """GPU hours of all trials so far."""
        return float(self._gpu_hours)

    def take(self, record: TrialRecord) -> None:
        """Add a trial, or replace its earlier record."""
        if before := self._records.get(record.number):
            self._count(before, -1)
        self._records[record.number] = record
        self._count(record, 1)
        self._pass_used()

    def withdraw(self, number: int) -> None:
        """Forget a trial that will never run."""
        self._count(self._records.pop(number), -1)
        self.next_number = min(self.next_number, number)

    def tried(self, point: Params) -> int:
        """How often a point has been tried, not counting failures."""
        return self._tries[_key(point)]

    def has(self, point: Params) -> bool:
        """Whether a trial of this sweep has had a point."""
        return self._points[_key(point)] > 0

    def unused_seed(self, point: Params, first: int) -> int:
        """A seed, from `first` on, that no earlier try or repeat of a point had."""
        seed = first + self.tried(point)
        while self._runs[_key(point), seed]:
            seed += 1
        return seed

    def position(self, number: int) -> int:
        """The position of a new trial in the search, not counting confirmations before it."""
        return number - sum(confirming < number for confirming in self._confirming)

    def recipes_before(self, number: int) -> Counter[str]:
        """How many trials of the search each recipe has with a lower number."""
        records = self._records.values()
        return Counter(
            record.config.recipe
            for record in records
            if record.number < number and record.confirms is None
        )

    def _pass_used(self) -> None:
        while self.next_number in self._records:
            self.next_number += 1

    def _count(self, record: TrialRecord, by: int) -> None:
        self._gpu_hours += by * Fraction(record.gpu_hours)
        if record.status is not TrialStatus.FAILED:
            self._runs[_key(record.params), record.config.seed] += by
        if record.confirms is not None:
            self._confirming.add(record.number)
            return
        self.searched += by
        self._points[_key(record.params)] += by
        self._count_try(record, by)

    def _count_try(self, record: TrialRecord, by: int) -> None:
        if record.status is not TrialStatus.FAILED:
            self._tries[_key(record.params)] += by


def _key(point: Params) -> _Point:
    return frozenset(point.items())
