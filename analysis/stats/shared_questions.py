"""Questions that several tasks ask, as TruthfulQA's mc1 and mc2 do: to statistics they are one."""

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
    """A task's, or one member's, items on the questions of a stratum.

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
    """The mean over tasks, each weighing the same, as a weighted mean over strata.

    A stratum's questions are those that the same tasks ask: all of theirs or, if one has a limit,
    only some.

    Args:
        items: by task, in the order of the scores.
        tasks: some of them.
    """
    asked: defaultdict[tuple[str, int], dict[Asker, int]] = defaultdict(dict)
    for task in tasks:
        times: Counter[Asker] = Counter()  # a task may ask a question twice
        for position, item in enumerate(items[task]):
            times[item.doc_hash, item.member] += 1
            nth = times[item.doc_hash, item.member]
            asked[item.doc_hash, nth][task, item.member] = position
    sizes = Counter(asker for askers in asked.values() for asker in askers)
    members = Counter(task for task, _ in sizes)
    alike: defaultdict[tuple[Asker, ...], list[tuple[int, ...]]] = defaultdict(list)
    for positions in asked.values():
        alike[tuple(positions)].append(tuple(positions.values()))
    found = []
    for askers, rows in alike.items():
        parts = []
        for (task, member), own in zip(askers, np.array(rows).T, strict=True):
            share = len(rows) / sizes[task, member] / members[task]
            parts.append(Part(task, own, share / len(tasks)))
        found.append(Stratum(tuple(parts)))
    return found
