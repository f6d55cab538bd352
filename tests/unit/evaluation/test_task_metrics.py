"""Which of a task's metrics counts as its accuracy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trainables.config import EvalTask
from trainables.errors import UserError
from trainables.evaluation.task_loading import LoadedTask
from trainables.evaluation.task_metrics import check_is_a_skill, choose_metric, values_and_errors


def result(**metrics: Any) -> dict[str, Any]:
    """What the harness gives of a task; two underscores stand for a comma."""
    return {"results": {"own": {k.replace("__", ","): value for k, value in metrics.items()}}}


def test_standard_errors_are_separated_from_values() -> None:
    given = result(acc__none=1, acc_stderr__none=0.1, x__y__none=0.5, alias="own")
    found, errors = values_and_errors(given, "own")
    assert found == {("acc", "none"): 1.0, ("x,y", "none"): 0.5}
    assert errors == {("acc", "none"): 0.1}


def loaded(*directions: dict[str, bool] | None, **fields: str) -> LoadedTask:
    known = [SimpleNamespace(higher_is_better=lambda d=d: d) for d in directions]
    return LoadedTask("ood", EvalTask(task="own", **fields), {"tasks": dict(enumerate(known))})


@pytest.mark.parametrize(
    ("fields", "metrics", "chosen"),
    [
        ({}, ["x", "f1", "exact_match", "acc"], "acc"),
        ({}, ["x", "bleu", "f1", "exact_match"], "exact_match"),
        ({}, ["x", "y"], "x"),
        ({"metric": "y"}, ["acc", "y"], "y"),
    ],
)
def test_the_named_metric_the_most_usual_or_the_first_is_chosen(
    fields: dict[str, str], metrics: list[str], chosen: str
) -> None:
    found = {(metric, f): 0.5 for metric in metrics for f in ("strict", f"of {metric}")}
    assert choose_metric(loaded(**fields), found, {}) == (chosen, "strict")
    own = f"of {chosen}"
    assert choose_metric(loaded(**fields, filter=own), found, {}) == (chosen, own)
    given = result(**{f"{metric}__strict": 0.5 for metric in metrics})
    wanted = fields.get("metric", "number")
    message = rf"no {wanted} \(filter loose\); it gives {metrics[0]} \(filter strict\) 0.5"
    with pytest.raises(UserError, match=message):
        choose_metric(loaded(**fields, filter="loose"), found, given)
    without_strict = {key: value for key, value in found.items() if key[1] != "strict"}
    assert choose_metric(loaded(**fields), without_strict, {}) == (chosen, own)


def test_a_metric_that_any_task_minimises_is_no_skill() -> None:
    task = loaded(None, {"acc": True}, {"loss": False})
    for skill in ("acc", "unknown"):
        check_is_a_skill(task, skill, [skill, "loss"])
    with pytest.raises(UserError, match=r"is better where it is lower; set its `metric` to acc$"):
        check_is_a_skill(task, "loss", ["loss", "acc", "acc"])
    with pytest.raises(UserError, match="better where it is lower; leave it out"):
        check_is_a_skill(task, "loss", ["loss"])
