"""What is told of tasks, from what the harness says of them: no model, and none of its files."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask

from trainables.config import EvalTask
from trainables.errors import UserError
from trainables.evaluation.task_errors import (
    Unfit,
    absent_names,
    check_can_be_scored,
    fault_of_unknown,
    why_not_loaded,
)
from trainables.evaluation.task_loading import LoadedTask
from trainables.evaluation.task_metrics import check_is_a_skill, choose_metric, values_and_errors

DATA = ("dataset_path", "custom_dataset", "class", "include")


def absent(**groups: list[Any]) -> list[str]:
    """Of the group `asked`, where the harness knows these groups and the task `few`."""
    configs: dict[str, Any] = {"few": {"task": "few"}}
    configs |= {name: {"group": name, "task": members} for name, members in groups.items()}
    return absent_names("asked", {name: SimpleNamespace(cfg=c) for name, c in configs.items()})


def test_names_that_groups_of_a_group_lack_are_told_once() -> None:
    assert absent(asked=["few", "othr", "inner"], inner=["few", "othr", "nne"]) == ["othr", "nne"]
    assert absent(asked=["inner"], inner=["few", "asked"]) == []  # one in the other
    assert absent() == ["asked"]


@pytest.mark.parametrize("key", DATA)
def test_what_is_spelt_out_in_a_group_with_its_data_needs_no_file(key: str) -> None:
    spelt_out = {"task": "own"}
    assert absent(asked=[spelt_out]) == ["own"]
    assert absent(asked=[spelt_out | {key: "data"}]) == []
    inner = {"group": "inner", "task": [spelt_out, "othr"]}
    assert absent(asked=[inner]) == ["own", "othr"]
    # The group's own data are its tasks', and those of the groups in it.
    assert absent(asked=[inner | {key: "data"}]) == []
    assert absent(asked=[{"group": "outer", "task": [inner], key: "data"}]) == []


def raised(code: str, package: str) -> Exception:
    """What code of a package raises."""
    try:
        exec(code, {"__name__": f"{package}.module"})  # noqa: S102
    except Exception as error:
        return error
    pytest.fail("nothing")


NO_AGGREGATION = "metric_name = 'acc_nrm'; raise KeyError(None)"
NO_TEXT = "def doc_to_text(): raise TypeError\ndoc_to_text()"


@pytest.mark.parametrize(
    ("code", "package", "told"),
    [
        (NO_AGGREGATION, "lm_eval", "its metric acc_nrm has no aggregation and is unknown; did "),
        (NO_AGGREGATION, "own", "KeyError: None"),
        (NO_TEXT, "lm_eval", "it has no doc_to_text that the harness can read"),
        (NO_TEXT, "own", "its doc_to_text: TypeError"),
        (NO_TEXT.replace("Error", "Error('x')"), "lm_eval", "its doc_to_text: TypeError: x"),
        ("raise TypeError", "lm_eval", "TypeError"),
        ("raise KeyError('no\\n such')", "lm_eval", "KeyError: 'no"),
        ("raise KeyError('no\\n such') from ValueError('x')", "lm_eval", "no such"),
        ("raise KeyError('no\\n such') from ValueError('x')", "own", "ValueError: x"),
    ],
)
def test_what_the_harness_means_by_an_error_is_not_said_of_a_task_s_own(
    code: str, package: str, told: str
) -> None:
    assert why_not_loaded(raised(code, package)).startswith(told)


@pytest.mark.parametrize(
    ("kind", "own", "told"),
    [
        ("generate_until", (), "the aggregation of its rooge is unknown"),
        ("generate_until", ("aggregation",), "its metric rooge is neither the harness's nor"),
        ("multiple_choice", ("aggregation",), "it has no doc_to_choice"),
        ("generate_until", ("process_results",), ""),
        ("multiple_choice", ("process_results", "doc_to_choice"), ""),
        ("multiple_choice", ("process_results", "construct_requests"), ""),
    ],
)
def test_a_task_of_its_own_class_needs_not_what_its_methods_replace(
    kind: str, own: tuple[str, ...], told: str
) -> None:
    methods = {name: lambda self: {"rooge": None} for name in own}
    task = object.__new__(type("Own", (ConfigurableTask,), methods))
    task._config = SimpleNamespace(process_results=None, doc_to_choice=None)
    task._aggregation_list = task._metric_fn_list = {"rooge": None}
    task.OUTPUT_TYPE, task.prompt = kind, None
    with pytest.raises(Unfit, match=f"^{told}") if told else nullcontext():
        check_can_be_scored(task)


@pytest.mark.parametrize("name", ["general_(x", "own"])
def test_files_that_cannot_be_read_leave_other_names_theirs(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\ntask: others\n")
    assert "cannot be read" not in fault_of_unknown("ood", name, ["few"], [str(tmp_path)]).rule
    file = tmp_path / "z.yaml"
    file.write_bytes(b"# caf\xe9\ntask: " + name.encode() + b"\na: b: c\n")
    fault = fault_of_unknown("ood", name, ["few"], [str(tmp_path)])
    assert "a file that names it cannot be read: " in fault.rule
    assert fault.location.startswith(str(file))


def result(**of_metrics: Any) -> dict[str, Any]:
    """What the harness gives of a task; two underscores stand for a comma."""
    return {"results": {"own": {k.replace("__", ","): value for k, value in of_metrics.items()}}}


def test_standard_errors_are_told_from_values() -> None:
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
        ({}, ["x", "bleu", "f1", "em", "mcq_acc", "exact_match", "acc"], "acc"),
        ({}, ["x", "bleu", "f1", "em", "mcq_acc", "exact_match"], "exact_match"),
        ({}, ["x", "bleu", "f1", "em", "mcq_acc"], "mcq_acc"),
        ({}, ["x", "bleu", "f1", "em"], "em"),
        ({}, ["x", "bleu", "f1"], "f1"),
        ({}, ["x", "bleu"], "bleu"),
        ({}, ["x", "y"], "x"),
        ({"metric": "y"}, ["acc", "y"], "y"),
    ],
)
def test_the_metric_of_a_task_is_the_named_the_most_usual_or_the_first(
    fields: dict[str, str], metrics: list[str], chosen: str
) -> None:
    found = {(metric, f): 0.5 for metric in metrics for f in ("strict", f"of {metric}")}
    assert choose_metric(loaded(**fields), found, {}) == (chosen, "strict")
    own = f"of {chosen}"
    assert choose_metric(loaded(**fields, filter=own), found, {}) == (chosen, own)
    given = result(**{f"{metric}__strict": 0.5 for metric in metrics})
    wanted = fields.get("metric", "number")
    told = rf"no {wanted} \(filter loose\); it gives {metrics[0]} \(filter strict\) 0.5"
    with pytest.raises(UserError, match=told):
        choose_metric(loaded(**fields, filter="loose"), found, given)
    without_strict = {key: value for key, value in found.items() if key[1] != "strict"}
    assert choose_metric(loaded(**fields), without_strict, {}) == (chosen, own)


def test_errors_are_told_from_skills_by_any_task_that_knows_them() -> None:
    task = loaded(None, {"acc": True}, {"loss": False})
    for skill in ("acc", "unknown"):
        check_is_a_skill(task, skill, [skill, "loss"])
    with pytest.raises(UserError, match=r"is better where it is lower; set its `metric` to acc$"):
        check_is_a_skill(task, "loss", ["loss", "acc", "acc"])
    with pytest.raises(UserError, match="better where it is lower; leave it out"):
        check_is_a_skill(task, "loss", ["loss"])
