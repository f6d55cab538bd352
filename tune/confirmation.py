"""Confirming the winners: which trials to repeat, and with which seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from trainables.results.recommendation import recommend
from trainables.results.records import TrialRecord
from tune.sweep_config import ConfirmConfig, SweepConfig


def unconfirmed(
    confirm: ConfirmConfig, chosen: Sequence[TrialRecord], records: Sequence[TrialRecord]
) -> Iterator[tuple[TrialRecord, int]]:
    """Winners paired with seeds that their points have not been run with yet."""
    for winner in chosen:
        runs = [record for record in records if record.params == winner.params]
        taken = {run.config.seed for run in runs}
        first = max(run.config.seed for run in runs if run.confirms is None) + 1
        unused = [seed for seed in range(first, first + confirm.seeds) if seed not in taken]
        repeats = sum(run.confirms is not None for run in runs)
        for seed in unused[: max(0, confirm.seeds - repeats)]:
            yield winner, seed


def winners(config: SweepConfig, records: Iterable[TrialRecord], count: int) -> list[TrialRecord]:
    """The recommended trial, the one recommended without its point, and so on, up to `count`."""
    left = [record for record in records if record.confirms is None]
    found: list[TrialRecord] = []
    while len(found) < count:
        best = recommend(config, left)
        if best is None or not best.feasible:
            break
        found.append(best.trial)
        left = [record for record in left if record.params != best.trial.params]
    return found
