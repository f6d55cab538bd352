"""What metrics that count whole items are off by."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np
import pytest

from analysis.results.item_metrics import limits, rounding
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
from trainables.records.schema import TaskScore

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
