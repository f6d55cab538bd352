"""What a model's items say about a metric: an interval, and how it narrows with more items."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.gate.subject import Subject
from analysis.results.item_metrics import measured_on
from analysis.results.repeats import LEVEL
from analysis.stats.intervals import Interval, over_items
from analysis.stats.task_parts import task_parts
from trainables.records.item_records import pair_items

_MORE = 4  # times the items, to see how an interval narrows


@dataclass(frozen=True)
class Evidence:
    """Items whose weighted mean is a metric.

    Attributes:
        values: by part (see `task_parts`) each item's score or, of forgetting, the base's minus
            the model's.
        weights: of the parts, with a sum of 1.
        bounds: the smallest and largest value an item can have.
        level: confidence level of the interval.
    """

    values: tuple[NDArray[np.float64], ...]
    weights: tuple[float, ...]
    bounds: tuple[float, float]
    level: float

    def interval(self, copies: int = 1) -> Interval:
        """The metric's interval, had each item been seen so many times."""
        repeated = [np.tile(part, copies) for part in self.values]
        return over_items(repeated, self.weights, bounds=self.bounds, level=self.level)

    def items_to_decide(self, bound: float) -> int | None:
        """About how many such items put the whole interval on one side of a bound.

        The observed value and the proportions of the tasks are kept. From the value to the end
        beyond the bound it is a / sqrt(n) + b / n for n items: the spread of the items that were
        seen, and of those that were not. a and b follow from the intervals of n and of 4 n items.

        None if the value is the bound: no number decides.
        """
        now, later = self.interval(), self.interval(_MORE)
        distance = abs(bound - now.estimate)
        if math.isclose(bound, now.estimate, rel_tol=1e-9, abs_tol=1e-12):
            return None
        is_below = now.estimate < bound
        one, other = (i.high - i.estimate if is_below else i.estimate - i.low for i in (now, later))
        seen, unseen = 4 * other - one, 2 * one - 4 * other
        # The root x = sqrt(n / wanted) of seen x + unseen x² = distance.
        root = math.sqrt(max(seen**2 + 4 * unseen * distance, 0.0))
        return math.ceil(now.n * ((seen + root) / (2 * distance)) ** 2)


def find_evidence(metric: str, subject: Subject) -> Evidence | None:
    """The items that a metric is the mean over; None if it is none, as where a task has no items.

    A task may also aggregate its items otherwise, such as by their median. The interval holds at
    once for all models that the subject was picked from (Bonferroni).
    """
    tasks, is_forgetting = measured_on(metric, subject.scores)
    pairs = pair_items(subject.base_items if is_forgetting else subject.items, subject.items)
    if not tasks or any(task not in pairs for task in tasks):
        return None
    parts = task_parts({task: [pair.base for pair in pairs[task]] for task in tasks}, tasks)
    values = {
        task: np.array(
            [p.base.score - p.tuned.score if is_forgetting else p.tuned.score for p in pairs[task]]
        )
        for task in tasks
    }
    found = Evidence(
        tuple(values[part.task][part.positions] for part in parts),
        tuple(part.weight for part in parts),
        (-1, 1) if is_forgetting else (0, 1),
        1 - (1 - LEVEL) / subject.picked_from,
    )
    mean = sum(w * float(part.mean()) for w, part in zip(found.weights, found.values, strict=True))
    return found if math.isclose(mean, subject.metrics[metric], abs_tol=1e-6) else None
