"""A question that several tasks ask is one question to intervals and tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_sweep import SyntheticSweep

from analysis.shown_sweeps import Results
from analysis.stats.shared_questions import strata
from analysis.sweeps import open_sweeps
from trainables.evaluation.forgetting import count_flips
from trainables.metric_keys import OOD_ACC
from trainables.records.schema import ItemScore


def item(task: str, question: str, score: float, member: str | None = None) -> ItemScore:
    texts = {"filter": "none", "prompt": "", "target": "", "answer": ""}
    return ItemScore(task=task, doc_hash=question, score=score, member=member, **texts)


def test_tasks_that_ask_the_same_questions_are_one_stratum() -> None:
    items = {
        "choice": [item("choice", q, 1.0) for q in ("a", "b", "c")],
        "generated": [item("generated", q, 0.0) for q in ("c", "a", "b")],
        "other": [item("other", q, 1.0) for q in ("d", "e")],
    }
    both, other = strata(items, ["choice", "generated", "other"])
    assert (both.weight, other.weight) == pytest.approx((2 / 3, 1 / 3))
    scores = {
        "choice": np.array([1.0, 0.0, 1.0]),
        "generated": np.array([0.0, 1.0, 1.0]),  # of c, a and b
        "other": np.array([0.0, 1.0]),
    }
    assert both.mean_of(scores).tolist() == [1.0, 0.5, 0.5]
    assert other.mean_of(scores).tolist() == [0.0, 1.0]


def test_a_group_that_weighs_its_tasks_equally_does_so_in_every_number() -> None:
    base = [item("group", f"s{n}", 1.0, "small") for n in range(10)]
    base += [item("group", f"l{n}", 1.0, "large") for n in range(1000)]
    tuned = [i.model_copy(update={"score": float(n >= 100)}) for n, i in enumerate(base[10:])]
    assert count_flips(base, [*base[:10], *tuned]) == {"group": (pytest.approx(0.05), 0.0)}
    assert [stratum.weight for stratum in strata({"group": base}, ["group"])] == [0.5, 0.5]


def sweep_asking_twice(folder: Path) -> Results:
    """Both tasks out of the domain ask the same questions, and get the same answers."""
    SyntheticSweep(trials=4, items=60).write(folder)
    for file in [folder / "base/items.jsonl", *folder.glob("trials/*/attempt_1/items/*.jsonl")]:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        first = [line for line in lines if line["task"] == "longer_sums"]
        rest = [line for line in lines if line["task"] != "other_numbers"]
        again = [line | {"task": "other_numbers"} for line in first]
        file.write_text("".join(f"{json.dumps(line)}\n" for line in [*rest, *again]))
    return Results(open_sweeps([folder]))


def test_the_same_answers_twice_are_no_more_evidence_than_once(tmp_path: Path) -> None:
    results = sweep_asking_twice(tmp_path)
    trial = results.complete[0]
    once, twice = ["longer_sums"], ["longer_sums", "other_numbers"]
    items = results.items
    assert items.compare(trial, None, twice, 1) == items.compare(trial, None, once, 1)
    interval = results.items.interval(trial, OOD_ACC, picked_from=1)
    assert interval is not None
    assert interval.n == 60
