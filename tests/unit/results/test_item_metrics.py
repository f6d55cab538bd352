"""What metrics that count whole items are off by."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest
from builders import base_record, repeat_of, sweep_config, sweep_record
from synthetic_sweep import SyntheticSweep

from analysis.results.item_metrics import limits, rounding
from analysis.shown_sweeps import Results
from analysis.stats.intervals import difference_over_seeds, over_seeds
from analysis.sweeps import open_sweeps
from trainables.config import Role
from trainables.metric_keys import (
    FORGETTING_MAX,
    FORGETTING_MEAN,
    FORGETTING_NLL,
    FORGETTING_POSITIVE,
    IN_DOMAIN_ACC,
    OOD_ACC,
    OOD_GAP,
    RETENTION_RATIO,
    VALIDATION_LOSS,
    task_forgetting,
    task_score,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import TaskScore
from tune.folder.recorder import Recorder

ITEMS: Mapping[str, tuple[Role, int]] = {
    "own": ("in_domain", 100),
    "arc": ("retention", 50),
    "piqa": ("retention", 200),
    "harder": ("ood", 80),
}


def score(role: Role, items: int) -> TaskScore:
    chance = {"chance": 0.25, "choices": 4.0, "stderr": None}
    return TaskScore(role=role, metric="acc", filter="none", value=0.5, items=items, **chance)


SCORES = {task: score(role, items) for task, (role, items) in ITEMS.items()}


def test_it_is_what_shares_of_whole_items_vary_by_around_the_true_ones() -> None:
    draw = np.random.default_rng(0)
    true = {task: draw.uniform(0.2, 0.8, 200_000) for task in ITEMS}
    off = {task: np.round(true[task] * n) / n - true[task] for task, (_, n) in ITEMS.items()}
    expected = {
        IN_DOMAIN_ACC: off["own"],
        task_score("retention", "arc", "acc"): off["arc"],
        task_forgetting("piqa"): off["piqa"],
        FORGETTING_MEAN: (off["arc"] + off["piqa"]) / 2,
        FORGETTING_POSITIVE: (off["arc"] + off["piqa"]) / 2,
        FORGETTING_MAX: off["arc"],  # at most that of its coarsest task
        OOD_ACC: off["harder"],
        OOD_GAP: off["own"] - off["harder"],
    }
    for metric, error in expected.items():
        assert rounding(metric, SCORES) == pytest.approx(error.std(), rel=0.01), metric
    assert rounding(VALIDATION_LOSS, SCORES) == 0
    assert rounding(FORGETTING_MAX, {}) == 0


@pytest.mark.parametrize(
    ("metrics", "least", "greatest"),
    [
        (
            (IN_DOMAIN_ACC, OOD_ACC, task_score("retention", "arc", "acc"), FORGETTING_POSITIVE),
            0,
            1,
        ),
        ((FORGETTING_MEAN, FORGETTING_MAX, task_forgetting("piqa"), OOD_GAP), -1, 1),
        ((VALIDATION_LOSS, "cost/gpu_h"), 0, inf),
        ((FORGETTING_NLL, RETENTION_RATIO, task_forgetting("own"), "of/no_kind"), -inf, inf),
    ],
)
def test_no_interval_goes_beyond_what_a_metric_can_be(
    metrics: tuple[str, ...], least: float, greatest: float
) -> None:
    for metric in metrics:
        assert limits(metric, SCORES) == (least, greatest), metric


@pytest.mark.parametrize("runs", [2, 3])
def test_intervals_over_seeds_hold_the_mean_as_often_as_they_say(runs: int) -> None:
    """Of accuracies on 100 items that vary by 0.02; else equal ones leave no doubt."""
    draw = np.random.default_rng(0)

    def share_held(known: float, of: int = 2000) -> float:
        means = 0.5 + draw.uniform(-0.005, 0.005, of)
        drawn = np.round(draw.normal(means[:, None], 0.02, (of, runs)), 2)
        found = [over_seeds(values, known) for values in drawn.tolist()]
        held = [i and i.low <= mean <= i.high for i, mean in zip(found, means, strict=True)]
        return sum(map(bool, held)) / of

    assert share_held(rounding(IN_DOMAIN_ACC, SCORES)) > 0.945
    if runs == 2:
        assert share_held(0.0) < 0.9


def test_equal_repeats_leave_doubt_of_a_difference_of_an_item() -> None:
    known = rounding(IN_DOMAIN_ACC, SCORES)
    found = difference_over_seeds([0.51, 0.51], [0.50, 0.50], known)
    assert found is not None
    assert found.low < 0 < found.high
    width = 12.7062 * sqrt(2) * 0.01 / sqrt(12) / sqrt(2)
    assert found.high - 0.01 == pytest.approx(width, rel=1e-4)


def test_reports_and_the_table_of_repeats_have_it(tmp_path: Path) -> None:
    """12.7 of Student's t with two runs, of 40 items a task."""
    folder = SyntheticSweep(trials=1, items=40).write(tmp_path)
    ledger = Ledger(folder)
    (trial,) = ledger.trials()
    for number in (100, 101):
        ledger.write_trial(repeat_of(trial, number, {IN_DOMAIN_ACC: 0.5}))
    results = Results(open_sweeps([folder]))
    of_domain = len(results.tasks("in_domain"))
    half = 12.7062 / sqrt(2) / 40 / sqrt(12) / sqrt(of_domain)
    found = results.over_seeds(trial, IN_DOMAIN_ACC)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-4)

    recorder = Recorder(ledger)
    base = base_record(scores=results.base.scores)
    recorder.sweep_started(sweep_record(sweep_config()), base, [])
    recorder.sweep_ended(ledger.trials())
    with ledger.folder.confirmed_csv.open(newline="") as stream:
        widths = {row["metric"]: float(row["half_width_95"]) for row in csv.DictReader(stream)}
    assert widths[IN_DOMAIN_ACC] == pytest.approx(half, rel=1e-4)
