"""Which trials are worth a look inside, where nobody says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from trainables.results.pareto import Goals, pareto_front
from trainables.results.recommendation import recommend
from trainables.results.records import TrialRecord
from trainables.results.repeats import judged_by_repeats


def notable_trials(goals: Goals, records: Sequence[TrialRecord]) -> list[int]:
    """The trial to take, the Pareto front, the best trade-off of each rank and of full fine-tuning.

    Their numbers in order, of complete trials with weights.
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
