"""Names of metrics: complete and distinct."""

from __future__ import annotations

import pytest

from trainables import metric_keys as keys
from trainables.metric_keys import METRICS

CONSTANTS = {
    name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)
}


def test_every_constant_is_described_and_nothing_else_is() -> None:
    assert set(CONSTANTS.values()) == set(METRICS)
    assert len(set(CONSTANTS.values())) == len(CONSTANTS)


@pytest.mark.parametrize("key", METRICS)
def test_metric_has_namespace_unit_and_meaning(key: str) -> None:
    namespace, slash, name = key.partition("/")
    assert slash
    assert namespace
    assert name
    assert METRICS[key].unit
    assert METRICS[key].meaning
