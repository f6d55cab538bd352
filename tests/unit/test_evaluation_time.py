"""What a run tells of its trials' evaluations, once it knows how long the base's took."""

from __future__ import annotations

import pytest
from builders import base_record, sweep_config

from tune.cluster.base_evaluation import time_of_evaluations


@pytest.mark.parametrize(
    ("report_every", "seconds", "workers", "told"),
    [
        (0.25, 149.0, 1, None),
        (0.25, 600.0, 1, "the 4 evaluations of a lora trial will take up to about 40 minutes"),
        (1, 60.0, 1, "the 24 evaluations of a lora trial will take up to about 24 minutes"),
        (0.25, 600.0, 3, "the 4 evaluations of a lora trial will take up to about 13 minutes"),
        (0.25, 449.0, 3, None),
        (1e6, 500.0, 1, None),
    ],
)
def test_evaluations_are_told_where_they_take_long(
    report_every: float, seconds: float, workers: int, told: str | None
) -> None:
    config = sweep_config(  # of 90 samples
        train={"batch_size": 15, "micro_batch_size": 5, "report_every": report_every, "epochs": 4},
        resources={method: {"workers": workers} for method in ("lora", "full")},
    )
    line = time_of_evaluations(config, base_record(seconds=seconds))
    assert (line is None) if told is None else (line and line.startswith(told))
    assert line is None or "eval.limit" in line
