"""Which trials to inspect by default."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from trainables.results.pareto import Goals, pareto_front
from trainables.results.recommendation import recommend
from trainables.results.records import TrialRecord
from trainables.results.repeats import judged_by_repeats


def notable_trials(goals: Goals, records: Sequence[TrialRecord]) -> list[int]:
    """The recommended trial, the Pareto front, and the best of each rank and of full fine-tuning.

    Best means the best trade-off. Only complete trials with weights count.

    Returns:
        Their numbers, in order.
    """
    groups: defaultdict[int | None, list[TrialRecord]] = defaultdict(list)
    kept = [record for record in records if record.weights_dir]
    for record in kept:
        groups[record.config.lora.rank if record.config.lora else None].append(record)
    choices = [recommend(goals, group) for group in groups.values()]
    judged = [record for record in judged_by_repeats(records) if record.weights_dir]
    choices.append(recommend(goals, kept, judged))
    taken = [choice.trial for choice in choices if choice]
    return sorted({record.number for record in [*pareto_front(goals, kept), *taken]})
