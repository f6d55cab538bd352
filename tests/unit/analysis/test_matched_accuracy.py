"""Forgetting of recipes at one accuracy in the domain, against numbers worked out by hand."""

from __future__ import annotations

from math import comb
from pathlib import Path

import pytest
from builders import adapter, with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.matched_accuracy import matched_rows
from analysis.report.recipe_section import recipe_answer
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, TRAINABLE_PARAMETERS
from trainables.records.item_records import items_file, write_items
from trainables.records.ledger import Ledger

RIGHT_AND_FORGOTTEN = {
    "early_stop": ((90, 30), (70, 4)),
    "plain": ((80, 12), (75, 20)),
    "hot": ((70, 60), (60, 0)),
    "cold": ((30, 0), (20, 0)),
}
"""Of both trials: how many of 100 in-domain items are right, how many retention items forgotten."""


def sweep_of(folder: Path, plan: dict[str, tuple[tuple[int, int], ...]]) -> Results:
    """Two trials of each recipe; a trial that forgets more forgets the same items and others."""
    recipes = {name: (adapter(rank=8),) for name in plan}
    count = 2 * len(plan)
    ledger = Ledger(SyntheticSweep(trials=count, items=100, recipes=recipes).write(folder))
    base = ledger.base_items()
    known = [i for i, item in enumerate(base) if item.task == "capitals" and item.score == 1]
    asked = [i for i, item in enumerate(base) if item.task == "sums"]
    for record in ledger.trials():
        right, forgotten = plan[record.config.recipe][record.number // len(plan)]
        scores = dict.fromkeys(known[:forgotten], 0.0)
        scores |= {index: float(place < right) for place, index in enumerate(asked)}
        items = [
            item.model_copy(update={"score": scores.get(index, item.score)})
            for index, item in enumerate(base)
        ]
        write_items(items_file(ledger.folder.attempt(record.number, 1), record.last.name), items)
        own = {IN_DOMAIN_ACC: right / 100, FORGETTING_MEAN: forgotten / 300}
        ledger.write_trial(with_metrics(record, record.last.metrics | own))
    return Results(open_sweeps([folder]))


def test_the_level_is_what_all_recipes_reach_that_learn_at_least_half_as_much(tmp_path):
    results = sweep_of(tmp_path, RIGHT_AND_FORGOTTEN)
    assert results.base.metrics[IN_DOMAIN_ACC] < 0.2  # so half of the largest gain is above 0.3
    rows = matched_rows(results)
    assert {row.level for row in rows} == {0.7}
    found = [(row.label, row.trial.number, row.in_domain, row.forgetting) for row in rows]
    assert found == [
        ("early_stop", 4, 0.7, 4 / 300),
        ("plain", 1, 0.8, 12 / 300),
        ("hot", 2, 0.7, 60 / 300),
        ("cold", 3, 0.3, 0.0),
    ]
    assert [row.reaches for row in rows] == [True, True, True, False]
    for row in rows:
        assert row.picked_from == 2
        assert row.interval.estimate == pytest.approx(row.forgetting)
        assert row.parameters == row.trial.metric(TRAINABLE_PARAMETERS)


def test_items_tell_apart_what_mcnemars_test_does_after_correction(tmp_path):
    """Of nested losses n differ, all in one direction: p = 2 / 2^n, times all that was picked."""
    results = sweep_of(tmp_path, RIGHT_AND_FORGOTTEN)
    picks = 2 * 2 * comb(4, 2)
    assert picks * 2 / 2 ** (12 - 4) > 0.05 > picks * 2 / 2 ** (60 - 4)
    rows = matched_rows(results)
    assert [row.label for row in rows if row.forgets_more] == ["hot"]
    answer = recipe_answer(results)
    assert answer.startswith("At 0.700 in the domain early_stop forgets least, +1.3 points (95 %: ")
    assert "On the same items hot forgets more." in answer
    assert "Items do not decide between it and plain." in answer
    assert answer.endswith("That accuracy is not reached by cold.")


def test_recipes_that_learn_nothing_are_not_matched(tmp_path):
    results = sweep_of(tmp_path, {"one": ((2, 0), (1, 4)), "other": ((1, 0), (2, 3))})
    assert results.base.metrics[IN_DOMAIN_ACC] > 0.02
    assert matched_rows(results) == []
    assert recipe_answer(results) is None
