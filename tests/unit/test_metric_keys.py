"""Names of metrics: complete, distinct, and made by functions where they name a task."""

from __future__ import annotations

import pytest

from trainables import metric_keys as keys
from trainables.config import ROLES
from trainables.metric_keys import METRICS

CONSTANTS = {
    name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)
}


def test_every_constant_is_described_and_nothing_else_is() -> None:
    assert set(CONSTANTS.values()) == set(METRICS)
    assert len(set(CONSTANTS.values())) == len(CONSTANTS)


@pytest.mark.parametrize("key", METRICS)
def test_a_metric_has_namespace_unit_direction_and_meaning(key: str) -> None:
    namespace, slash, name = key.partition("/")
    assert slash
    assert namespace
    assert name
    metric = METRICS[key]
    assert metric.unit
    assert metric.better in ("min", "max", "none")
    assert metric.meaning


def test_means_of_roles_are_among_them() -> None:
    assert {keys.role_mean(role) for role in ROLES} == {
        keys.IN_DOMAIN_ACC,
        keys.RETENTION_ACC,
        keys.OOD_ACC,
    }
    assert {keys.role_mean(role) for role in ROLES} <= set(METRICS)


def test_keys_of_tasks_are_distinct() -> None:
    made = [
        keys.task_score("retention", "t", "acc"),
        keys.task_forgetting("t"),
        keys.task_forgetting_adjusted("t"),
        keys.task_retention_ratio("t"),
        keys.task_flips("t", "forgotten"),
        keys.task_flips("t", "gained"),
    ]
    assert made == [
        "retention/t/acc",
        "forgetting/t",
        "forgetting_chance_adjusted/t",
        "retention/t/ratio",
        "flips/t/forgotten",
        "flips/t/gained",
    ]
    assert not set(made) & set(METRICS)
