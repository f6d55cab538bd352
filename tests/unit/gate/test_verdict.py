"""Verdicts on criteria, and the items that they take, against closed forms and brute force."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import ArrayLike

from analysis.gate.criteria import read_criteria
from analysis.gate.evidence import Evidence, find_evidence
from analysis.gate.junit_report import write_junit
from analysis.gate.subject import Subject
from analysis.gate.verdict import Verdict, exit_code, judge
from analysis.stats.intervals import Interval
from trainables.config import Constraint
from trainables.errors import UserError
from trainables.records.schema import ItemScore, TaskScore

AT_MOST = Constraint(metric="forgetting/mean", operator="<=", bound=0.02)
AT_LEAST = Constraint(metric="in_domain/acc_mean", operator=">=", bound=0.8)


def forgetting(forgotten: int, gained: int, items: int) -> list[float]:
    return [1.0] * forgotten + [-1.0] * gained + [0.0] * (items - forgotten - gained)


def evidence(*tasks: ArrayLike, bounds: tuple[float, float] = (-1, 1)) -> Evidence:
    arrays = tuple(np.asarray(task, dtype=float) for task in tasks)
    return Evidence(arrays, (1 / len(tasks),) * len(tasks), bounds, level=0.95)


def accuracy(right: int, items: int) -> Evidence:
    return evidence([1.0] * right + [0.0] * (items - right), bounds=(0, 1))


def shrunk_or_grown(own: Evidence, items: int) -> Evidence:
    """So many items in the same proportions, as nearly as whole items can have them."""
    factor = items / own.interval().n
    tasks = []
    for values in own.values:
        size = round(values.size * factor)
        places = ((np.arange(size) + 0.5) / size * values.size).astype(int)
        tasks.append(np.sort(values)[places])
    return Evidence(tuple(tasks), own.weights, own.bounds, own.level)


@pytest.mark.parametrize(
    ("criterion", "own", "outcome"),
    [
        (AT_MOST, evidence(forgetting(0, 0, 1000)), "pass"),
        (AT_MOST, evidence(forgetting(80, 5, 1000)), "fail"),
        (AT_MOST, evidence(forgetting(0, 0, 20)), "cannot tell"),
        (AT_MOST, evidence(forgetting(15, 5, 1000)), "cannot tell"),
        (AT_MOST, evidence(forgetting(30, 5, 1000)), "cannot tell"),
        (AT_LEAST, accuracy(900, 1000), "pass"),
        (AT_LEAST, accuracy(700, 1000), "fail"),
        (AT_LEAST, accuracy(9, 10), "cannot tell"),
        (AT_LEAST, accuracy(7, 10), "cannot tell"),
    ],
)
def test_the_whole_interval_must_be_on_one_side(
    criterion: Constraint, own: Evidence, outcome: str
) -> None:
    verdict = judge(criterion, own.interval().estimate, own)
    assert verdict.outcome == outcome
    assert (verdict.needed is not None) == (outcome == "cannot tell")


def test_without_items_the_value_decides_and_the_line_says_so() -> None:
    criterion = Constraint(metric="kl/base_to_tuned", operator="<=", bound=0.5)
    assert judge(criterion, 0.5, None).outcome == "pass"
    verdict = judge(criterion, 0.6, None)
    assert verdict.outcome == "fail"
    assert "no interval" in str(verdict)


@pytest.mark.parametrize(
    ("own", "bound"),
    [
        (evidence(forgetting(0, 0, 60)), 0.02),
        (evidence(forgetting(1, 0, 150)), 0.02),
        (evidence(forgetting(12, 4, 400)), 0.03),
        (evidence(forgetting(30, 5, 1000)), 0.02),
        (evidence(forgetting(4, 1, 100), forgetting(3, 3, 40)), 0.05),
        (evidence(np.random.default_rng(0).uniform(-0.5, 0.6, 200)), 0.1),
        (accuracy(20, 20), 0.9),
        (accuracy(85, 100), 0.8),
        (accuracy(76, 100), 0.8),
    ],
)
def test_so_many_items_decide_and_a_fifth_less_do_not(own: Evidence, bound: float) -> None:
    def decides(items: int) -> bool:
        interval = shrunk_or_grown(own, items).interval()
        return not interval.low <= bound <= interval.high

    needed = own.items_to_decide(bound)
    assert needed is not None
    assert needed > own.interval().n
    assert decides(math.ceil(1.1 * needed))
    assert not decides(math.floor(0.8 * needed))


def test_if_all_are_right_the_items_follow_from_clopper_and_pearson() -> None:
    """Of n right of n the lower end is 0.025^(1/n)."""
    needed = accuracy(20, 20).items_to_decide(0.9)
    assert needed == pytest.approx(math.log(0.025) / math.log(0.9), rel=0.1)


def test_a_value_on_its_bound_is_decided_by_no_number_of_items() -> None:
    verdict = judge(AT_LEAST, 0.8, accuracy(80, 100))
    assert (verdict.outcome, verdict.needed) == ("cannot tell", None)
    assert "no number of items" in str(verdict)


VERDICTS = [
    Verdict(AT_MOST, 0.05, "fail", Interval(0.05, 0.03, 0.07, 1000)),
    Verdict(AT_LEAST, 0.81, "cannot tell", Interval(0.81, 0.7, 0.9, 80), 5000),
    Verdict(AT_LEAST, 0.95, "pass", Interval(0.95, 0.9, 0.97, 400)),
]


def test_one_failure_outweighs_what_cannot_be_told() -> None:
    failed, open_, passed = VERDICTS
    assert exit_code([passed]) == 0
    assert exit_code([passed, open_]) == 3
    assert exit_code([passed, open_, failed]) == 1


def test_junit_has_a_case_for_each_criterion(tmp_path: Path) -> None:
    file = tmp_path / "new" / "gate.xml"
    write_junit(file, "a <model>\x00", VERDICTS)
    root = ElementTree.parse(file).getroot()  # noqa: S314
    [suite] = root
    assert {**suite.attrib} == {
        "name": "gate",
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    assert [case.attrib["name"] for case in suite] == [str(v.criterion) for v in VERDICTS]
    assert {case.attrib["classname"] for case in suite} == {"a <model>"}
    assert [case[0].tag for case in suite] == ["failure", "skipped", "system-out"]
    assert "0.03 to 0.07" in suite[0][0].attrib["message"]
    assert "5,000 items" in suite[1][0].attrib["message"]


def test_criteria_are_read_from_the_command_line_each_once() -> None:
    found = read_criteria("0.02", ["in_domain/acc_mean=0.8"], ["forgetting/mean=0.02", "a=b=1"])
    assert list(map(str, found)) == [
        "forgetting/mean <= 0.02",
        "in_domain/acc_mean >= 0.8",
        "a=b <= 1",
    ]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ((None, [], []), "gate", ""),
        (("much", [], []), "--max-forgetting", "much"),
        (("nan", [], []), "--max-forgetting", "nan"),
        ((None, ["0.8"], []), "--min", "0.8"),
        ((None, [], ["forgetting/mean=0,2"]), "--max", "0,2"),
    ],
)
def test_faulty_criteria_are_refused(
    arguments: tuple[str | None, list[str], list[str]], field: str, value: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_criteria(*arguments)
    [fault] = caught.value.faults
    assert fault.field == field
    assert value in fault.rule


def test_a_metric_that_is_not_the_mean_of_its_items_has_no_evidence() -> None:
    score = TaskScore(
        role="in_domain",
        metric="acc",
        filter="none",
        value=0.5,
        stderr=None,
        chance=None,
        choices=None,
        items=3,
    )
    items = [
        ItemScore(task="t", doc_hash=str(n), filter="none", score=each, answer="")
        for n, each in enumerate((0.0, 0.5, 1.0))
    ]

    def own(value: float) -> Subject:
        return Subject("m", "", {"in_domain/t/acc": value}, {"t": score}, items, [])

    found = find_evidence("in_domain/t/acc", own(0.5))
    assert found is not None
    assert found.interval().estimate == 0.5
    assert find_evidence("in_domain/t/acc", own(0.6)) is None
