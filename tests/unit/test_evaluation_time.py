"""What a run tells of its trials' evaluations, once it knows how long the base's took."""

from __future__ import annotations

import pytest
from builders import base_record, sweep_config

from tune.cluster.base_evaluation import time_of_evaluations


@pytest.mark.parametrize(
    ("report_every", "seconds", "told"),
    [
        (0.25, 149.0, None),
        (0.25, 600.0, "a trial's 4 evaluations will take about 40 minutes, each as long as"),
        (1, 60.0, "a trial's 24 evaluations will take about 24 minutes"),  # of 90 samples
        (1e6, 500.0, None),
    ],
)
def test_evaluations_are_told_where_they_take_long(
    report_every: float, seconds: float, told: str | None
) -> None:
    config = sweep_config(
        train={"batch_size": 15, "micro_batch_size": 5, "report_every": report_every, "epochs": 4}
    )
    line = time_of_evaluations(config, base_record(seconds=seconds))
    assert (line is None) if told is None else (line and line.startswith(told))
    assert line is None or "eval.limit" in line
