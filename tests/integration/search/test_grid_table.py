"""Points of the search benchmark's table, trained again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from benchmarks.grid import Grid, Point, sweep, train_in_full, train_in_slots
from evaluated import evaluated_base

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_point_trained_again_measures_what_the_table_says(tmp_path: Path, method: str) -> None:
    config = sweep()
    base = evaluated_base(config, tmp_path)
    trainings = [t for t in Grid.read().trainings if t.point.method == method]
    recorded = trainings[len(trainings) // 2]
    train = train_in_slots if method == "lora" else train_in_full
    (live,) = train(config, [(recorded.point, recorded.seed)], base)
    assert isinstance(live.point, Point)
    assert live.status is recorded.status
    assert list(live.curve) == list(recorded.curve)
    for step, metrics in recorded.curve.items():
        # An item or two of a task's 32 may fall otherwise on another machine.
        assert live.curve[step] == pytest.approx(metrics, abs=0.05)
