"""How tasks, and the members of a group of tasks, weigh in a mean over tasks."""

from __future__ import annotations

import pytest

from analysis.stats.task_parts import task_parts
from trainables.evaluation.forgetting import count_flips
from trainables.records.schema import ItemScore


def item(task: str, question: str, score: float, member: str | None = None) -> ItemScore:
    texts = {"filter": "none", "prompt": "", "target": "", "answer": ""}
    return ItemScore(task=task, doc_hash=question, score=score, member=member, **texts)


def test_a_group_that_weighs_its_tasks_equally_does_so_in_every_number() -> None:
    base = [item("group", f"s{n}", 1.0, "small") for n in range(10)]
    base += [item("group", f"l{n}", 1.0, "large") for n in range(1000)]
    tuned = [i.model_copy(update={"score": float(n >= 100)}) for n, i in enumerate(base[10:])]
    assert count_flips(base, [*base[:10], *tuned]) == {"group": (pytest.approx(0.05), 0.0)}
    parts = task_parts({"group": base, "other": [item("other", "o", 1.0)]}, ["group", "other"])
    sizes = [(part.task, len(part.positions), part.weight) for part in parts]
    assert sizes == [("group", 10, 0.25), ("group", 1000, 0.25), ("other", 1, 0.5)]
