"""What a gate judges: a model's scores beside the base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainables.records.schema import ItemScore, TaskScore


@dataclass(frozen=True)
class Subject:
    """A model to judge.

    Attributes:
        name: such as `trial 7 of quickstart`.
        about: what else to show of it; possibly empty.
        metrics: as of `metric_keys`.
        scores: by task's label; those of the base serve, too.
        items, base_items: the outcomes of the model and of the base on each item.
        picked_from: number of models that this one was picked from on these items.
    """

    name: str
    about: str
    metrics: Mapping[str, float]
    scores: Mapping[str, TaskScore]
    items: Sequence[ItemScore]
    base_items: Sequence[ItemScore]
    picked_from: int = 1
