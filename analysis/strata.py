"""Questions as statistics need them: one that several tasks ask is one question, not several.

Tasks such as a multiple choice and its generated form share their documents, whose answers go right
and wrong together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainables.results.records import ItemScore

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Part:
    """The items by which one task, or one member of a group, asks a stratum's questions.

    Attributes:
        positions: of the items among the task's, in the stratum's order of questions.
        weight: of the part in the mean over tasks.
    """

    task: str
    positions: NDArray[np.intp]
    weight: float


@dataclass(frozen=True)
class Stratum:
    """Questions that are resampled together, with the parts that ask all of them."""

    parts: tuple[Part, ...]

    @property
    def weight(self) -> float:
        """In the mean over tasks; the weights of all strata sum to 1."""
        return sum(part.weight for part in self.parts)

    def mean_of(self, scores: Scores) -> NDArray[np.float64]:
        """Each question's mean score over the parts, in the stratum's order of questions."""
        own = [scores[part.task][part.positions] for part in self.parts]
        return np.average(own, axis=0, weights=[part.weight for part in self.parts])


def strata(items: Mapping[str, Sequence[ItemScore]], tasks: Sequence[str]) -> list[Stratum]:
    """The strata over which the mean over tasks, each weighing the same, is a weighted mean.

    Args:
        items: by task, in the order of the scores.
        tasks: some of them.
    """
    found: defaultdict[tuple[str, ...], list[Part]] = defaultdict(list)
    for task in tasks:
        members: defaultdict[str | None, list[int]] = defaultdict(list)
        for position, item in enumerate(items[task]):
            members[item.member].append(position)
        for own in members.values():
            own.sort(key=lambda position: items[task][position].doc_hash)
            questions = tuple(items[task][position].doc_hash for position in own)
            weight = 1 / len(tasks) / len(members)
            found[questions].append(Part(task, np.array(own), weight))
    return [Stratum(tuple(parts)) for parts in found.values()]
