"""Questions as statistics need them: one that several tasks ask is one question, not several.

Tasks such as a multiple choice and its generated form share their documents, whose answers go right
and wrong together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainables.records.schema import ItemScore

Scores = Mapping[str, NDArray[np.float64]]
Asker = tuple[str, str | None]  # a task, and its member if it is a group that weighs them equally


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

    A stratum's questions are those that the same tasks ask, be it all of theirs or, where one has a
    limit, only some.

    Args:
        items: by task, in the order of the scores.
        tasks: some of them.
    """
    asked: defaultdict[tuple[str, int], list[tuple[Asker, int]]] = defaultdict(list)
    sizes: Counter[Asker] = Counter()
    for task in tasks:
        times: Counter[tuple[str | None, str]] = Counter()  # a task may ask a question twice
        for position, item in enumerate(items[task]):
            asker = task, item.member
            sizes[asker] += 1
            times[item.member, item.doc_hash] += 1
            question = item.doc_hash, times[item.member, item.doc_hash]
            asked[question].append((asker, position))
    members = Counter(task for task, _ in sizes)
    found: defaultdict[tuple[Asker, ...], list[tuple[int, ...]]] = defaultdict(list)
    for askings in asked.values():
        askers, positions = zip(*askings, strict=True)
        found[askers].append(positions)
    return [
        Stratum(
            tuple(
                Part(
                    task,
                    np.array(own),
                    len(own) / sizes[task, member] / members[task] / len(tasks),
                )
                for (task, member), own in zip(askers, zip(*positions, strict=True), strict=True)
            )
        )
        for askers, positions in found.items()
    ]
