"""What curves over capacities are drawn over: the capacity, or the number of trained parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analysis.shown_sweeps import Results
from trainables.metric_keys import TRAINABLE_PARAMETERS
from trainables.records.schema import TrialRecord


@dataclass(frozen=True)
class CapacityAxis:
    """A log axis with a place for each trial.

    Attributes:
        place: a trial's value; None of one that has no place there.
        ticks: labels by value, of one or two lines; empty for those of any log axis.
    """

    title: str
    place: Callable[[TrialRecord], float | None]
    ticks: dict[float, str]


def capacity_axis(results: Results) -> CapacityAxis | None:
    """The capacity if it is one for all recipes but one, else the number of trained parameters.

    None if no recipe has a capacity.
    """
    sized = [(group, group.capacity) for group in results.groups if group.capacity is not None]
    if not sized:
        return None
    names = {capacity.name for _, capacity in sized}
    unsized = {group.recipe for group in results.groups if group.capacity is None}
    if len(names) > 1 or len(unsized) > 1:
        return CapacityAxis("trained parameters", lambda r: r.metric(TRAINABLE_PARAMETERS), {})
    [name] = names
    is_one_curve = len({(group.sweep.title, group.recipe) for group, _ in sized}) == 1
    ticks = {
        float(capacity.number): f"{capacity.number}\nof {group.picked_from}"
        if is_one_curve
        else str(capacity.number)
        for group, capacity in sized
    }
    title = f"{name}, best of so many trials" if is_one_curve else name
    return CapacityAxis(title, _number, ticks)


def _number(record: TrialRecord) -> float | None:
    capacity = record.config.capacity
    return None if capacity is None else float(capacity.number)
