"""A sweep's own objectives are shown wherever its scores are, with their units and intervals."""

from __future__ import annotations

import re

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.report.answer import answer
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MAX,
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    KL_BASE_TO_TUNED,
    task_forgetting,
    task_score,
)


def results_of(folder, **fields) -> Results:
    return Results(open_sweeps([SyntheticSweep(trials=12, **fields).write(folder)]))


def bound(metric: str, value: float, operator: str = "<=") -> dict[str, object]:
    return {"metric": metric, "operator": operator, "bound": value}


ON_ITEMS = (
    bound(task_forgetting("capitals"), 0.15),
    bound(task_score("in_domain", "sums", "acc"), 0.88, ">="),
    bound(FORGETTING_MAX, 0.15),
)


@pytest.mark.parametrize(("items", "told"), [(40, " and ".join), (2000, None)])
def test_constraints_on_a_task_and_on_the_most_forgotten_are_judged(tmp_path, items, told):
    results = results_of(tmp_path, items=items, constraints=ON_ITEMS)
    found = answer(results)
    assert found.is_feasible
    said = re.findall(
        r"Its items do not decide whether it truly keeps (.*?)\.(?: |$)", found.reason
    )
    assert said == ([told(map(str, results.goals.constraints))] if told else [])
    assert "without an interval" not in found.reason


def test_constraints_that_no_item_decides_are_named_as_such(tmp_path):
    constraints = (bound(FORGETTING_MEAN, 0.9), bound(KL_BASE_TO_TUNED, 2))
    results = results_of(tmp_path, constraints=constraints)
    said = "That it keeps kl/base_to_tuned <= 2 is as measured, without an interval."
    assert answer(results).reason.endswith(f" {said}")
    results.sweeps[0].ledger.folder.base_items.unlink()
    said = "That it keeps forgetting/mean <= 0.9 and kl/base_to_tuned <= 2 is as measured"
    assert said in answer(Results(open_sweeps([tmp_path]))).reason


def test_of_the_greatest_forgetting_the_interval_is_that_of_all_tasks_at_once(
    tmp_path,
):
    results = results_of(tmp_path)
    trial, tasks = results.recommendation.trial, list(results.tasks("retention"))
    own = []
    for task in tasks:
        found = results.items.interval(trial, task_forgetting(task), 36)
        assert found == results.items.compare(trial, None, [task], 36).difference.negated()
        assert found.estimate == pytest.approx(trial.metric(task_forgetting(task)))
        own.append(found)
    greatest = results.items.interval(trial, FORGETTING_MAX, 12)  # each of three tasks
    assert greatest.estimate == pytest.approx(trial.metric(FORGETTING_MAX))
    assert greatest.low == max(interval.low for interval in own)
    assert greatest.high == max(interval.high for interval in own)
    sums = results.items.interval(trial, task_score("in_domain", "sums", "acc"), 1)
    assert sums == results.items.interval(trial, IN_DOMAIN_ACC, 1)
    assert results.items.interval(trial, KL_BASE_TO_TUNED, 1) is None
