"""Which trials to inspect by default."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from analysis.results.pareto import Goals, measured_points, objective_values, pareto_front
from analysis.results.recommendation import recommend
from analysis.results.repeats import best_confirmed, judged_by_repeats
from analysis.results.trade_off import trade_off_ranges
from trainables.records.schema import TrialRecord


def default_selection(goals: Goals, records: Sequence[TrialRecord]) -> list[int]:
    """The recommended trial, the Pareto front, and the best of each recipe and capacity.

    Best means the best trade-off at any strength, as in the report, where those that repeats
    refuted come last. Only complete trials with weights count.

    Returns:
        Their numbers, in order.
    """
    complete = [record for record in records if objective_values(goals, record) is not None]
    kept = [record for record in complete if record.weights_dir]
    groups: defaultdict[str, list[TrialRecord]] = defaultdict(list)
    for point in measured_points(goals, kept):
        groups[point.config.group_label].append(point)
    ranges = trade_off_ranges(goals, measured_points(goals, complete)) if complete else []
    found = judged_by_repeats(records, goals.confirm)
    judged = {record.point_id: record for record in found if record.weights_dir}
    taken = [best_confirmed(goals, group, judged, ranges) for group in groups.values()]
    recommended = recommend(goals, kept, [*judged.values()])
    taken += [recommended.trial] if recommended else []
    return sorted({record.number for record in [*pareto_front(goals, kept), *taken]})
