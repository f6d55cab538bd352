"""A sentence on the difference of two models, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.conclusions.conclusion import Conclusion, p_text
from analysis.item_comparison import Comparison
from analysis.results.formatting import end_in_points, points
from analysis.results.repeats import LEVEL
from analysis.stats.intervals import Interval


@dataclass(frozen=True)
class Subject:
    """What a sentence is about, as it is called at the start and within: names keep their case."""

    first: str
    within: str


def size_in_points(comparison: Comparison) -> str:
    """The difference without its sign, such as `3.2`."""
    return _in_points(comparison.difference.estimate)


def _in_points(share: float) -> str:
    return f"{100 * abs(share):.1f}"


def mean_over_repeats(count: int, mean: str, of: str = "") -> str:
    """The mean over as many repeats: one run's size may lie outside of their interval."""
    if count == 1:
        return f"; in a run with another seed {mean}"
    return f"; over {count} runs{of} with other seeds {mean} on average"


def state_difference(
    subject: Subject,
    shown: str,
    comparison: Comparison,
    otherwise: str,
    picked: str,
    quantity: str,
    adjusted: str = "",
) -> Conclusion:
    """What is `shown` of the subject, or `otherwise`: items may tell apart what repeats do not."""
    evidence = _evidence(comparison, picked, quantity, adjusted)
    mean = comparison.over_repeats
    if comparison.is_shown:
        of = " of one of them" if comparison.is_once else ""
        over = "" if mean is None else mean_over_repeats(comparison.repeats, _in_points(mean), of)
        return Conclusion(f"{subject.first} {shown}{over}.", evidence)
    statement = f"{subject.first} {otherwise}"
    if comparison.runs_differ:
        within = f"{subject.within} {shown}"
        more = "repeats" if mean is None else "more repeats"
        statement = (
            f"That {within} is not confirmed by repeats with other seeds"
            if comparison.is_doubted
            else f"In one run of each, {within}; {more} with other seeds would show whether it is "
            "so for other trainings, too (`confirm`)"
        )
    elif comparison.repeats_differ:
        statement += " by these items alone; repeats with other seeds agree on a difference"
    return Conclusion(f"{statement}.", evidence, "open")


def _evidence(comparison: Comparison, picked: str, quantity: str, over: str) -> str:
    """Such as `95 % interval of the gain -0.4 to +3.1 points, n = 384; McNemar p = 0.13`.

    It says so if the models were picked on the items that they are compared on.
    """
    is_picked = comparison.picked_from > 1
    interval = comparison.difference
    parts = [
        f"{'simultaneous ' if is_picked else ''}{100 * LEVEL:g} % interval of {quantity} "
        f"{_ends(interval)}, n = {interval.n}"
    ]
    if comparison.differing:
        adjusted = (" (Bonferroni)" if is_picked else "") + over
        parts.append(f"{comparison.test} {p_text(comparison.p_value)}{adjusted}")
    else:
        parts.insert(0, "no item differs")
    if seeds := comparison.seeds:
        picked_run = ", which was picked" if comparison.is_flattered else ""
        once = f"repeats of one, for a run of the other{picked_run}"
        of = once if comparison.is_once else "repeats"
        parts.append(f"over seeds {_ends(seeds)}, n = {comparison.repeats} {of}")
    elif comparison.over_repeats is not None:
        once = "repeats of one, without a complete one of the other,"
        of = once if comparison.is_once else "repeats"
        parts.append(f"over {of} {points(comparison.over_repeats)} points, too few for an interval")
    if comparison.diverged:
        parts.append(f"repeats that diverged: {comparison.diverged}")
    return "; ".join([*parts, f"{picked}, picked on these items"] if is_picked else parts)


def _ends(interval: Interval) -> str:
    return f"{end_in_points(interval.low)} to {end_in_points(interval.high)} points"
