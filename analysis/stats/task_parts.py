"""The mean over tasks as a weighted mean over parts: tasks, and members of a group of tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainables.records.schema import ItemScore


@dataclass(frozen=True)
class Part:
    """The items of a task or, if a group weighs its tasks equally, of one of these.

    Attributes:
        positions: of the items among the task's.
        weight: in the mean over tasks; the weights of all parts sum to 1.
    """

    task: str
    positions: NDArray[np.intp]
    weight: float


def task_parts(items: Mapping[str, Sequence[ItemScore]], tasks: Sequence[str]) -> list[Part]:
    """Split tasks, each of the same weight, into parts; `items`: by task."""
    parts = []
    for task in tasks:
        members: defaultdict[str | None, list[int]] = defaultdict(list)
        for position, item in enumerate(items[task]):
            members[item.member].append(position)
        weight = 1 / len(members) / len(tasks)
        parts += [Part(task, np.array(positions), weight) for positions in members.values()]
    return parts
