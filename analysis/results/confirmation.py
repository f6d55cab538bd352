"""Confirming the winners: which trials to repeat, and with which seeds.

The search asks here what to run, and the report what is missing, so they never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from analysis.results.pareto import Goals
from analysis.results.recommendation import recommend
from analysis.results.repeats import CONCLUSIVE, point_of
from trainables.config import ConfirmConfig
from trainables.records.schema import TrialRecord


def planned_repeats(confirm: ConfirmConfig | None, searched: int, recipes: int = 1) -> int:
    """How many repeat runs there will be after so many trials, if there are enough winners.

    `recipes`: how many the search has.
    """
    if confirm is None:
        return 0
    most = confirm.top_k * (recipes if confirm.per_recipe else 1)
    return min(most, searched) * confirm.seeds


def repeats_to_begin(goals: Goals, records: Sequence[TrialRecord]) -> int:
    """How many repeat runs of the winners, as they are now, have yet to begin."""
    if goals.confirm is None:
        return 0
    chosen = winners(goals, goals.confirm, records)
    return sum(1 for _ in unconfirmed(goals.confirm.seeds, chosen, records))


def missing_repeats(records: Iterable[TrialRecord], to_begin: int, whose: str = "") -> str:
    """A sentence to follow the answer, with a space before it; empty if no repeat is missing.

    Args:
        records: of one sweep.
        to_begin: of `repeats_to_begin`.
        whose: such as ` of first`, where there are several sweeps.
    """
    repeats = [record for record in records if record.confirms is not None]
    missing = to_begin + sum(record.status not in CONCLUSIVE for record in repeats)
    text = f"{missing} of {len(repeats) + to_begin} repeats with other seeds{whose}"
    return f" Missing: {text}, not run to their end." if missing else ""


def unconfirmed(
    seeds: int, chosen: Sequence[TrialRecord], records: Sequence[TrialRecord]
) -> Iterator[tuple[TrialRecord, int]]:
    """Winners paired with seeds that their points have not been run with yet.

    `seeds`: how many repeats each winner gets.
    """
    for winner in chosen:
        point = point_of(winner)
        runs = [record for record in records if point_of(record) == point]
        first = max(run.config.seed for run in runs) + 1
        repeats = sum(run.confirms is not None for run in runs)
        for seed in range(first, first + seeds - repeats):
            yield winner, seed


def winners(
    goals: Goals, confirm: ConfirmConfig, records: Iterable[TrialRecord]
) -> list[TrialRecord]:
    """The best trials of the sweep, or of each recipe, in the order of their first trials."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in sorted(records, key=lambda record: record.number):
        if record.confirms is None:
            recipe = record.config.recipe if confirm.per_recipe else ""
            groups.setdefault(recipe, []).append(record)
    return [best for group in groups.values() for best in _best(goals, group, confirm.top_k)]


def _best(goals: Goals, records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The recommended trial, the one recommended without its point, and so on, up to `count`."""
    left = [*records]
    found: list[TrialRecord] = []
    while len(found) < count:
        best = recommend(goals, left)
        if best is None or not best.feasible:
            break
        found.append(best.trial)
        taken = point_of(best.trial)
        left = [record for record in left if point_of(record) != taken]
    return found
