"""Which trials are worth a look inside, where nobody says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from trainables.pareto import Goals, pareto_front, recommend
from trainables.records import TrialRecord


def notable_trials(goals: Goals, records: Iterable[TrialRecord]) -> list[int]:
    """The Pareto front, the best trade-off of each rank and of full fine-tuning; by number.

    Of complete trials with weights.
    """
    kept = [record for record in records if record.weights_dir]
    groups: defaultdict[int | None, list[TrialRecord]] = defaultdict(list)
    for record in kept:
        groups[record.config.lora.rank if record.config.lora else None].append(record)
    best = [found.trial for group in groups.values() if (found := recommend(goals, group))]
    return sorted({record.number for record in [*pareto_front(goals, kept), *best]})
