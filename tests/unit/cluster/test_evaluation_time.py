"""When trials are evaluated, and how long that will take by the base's evaluation."""

from __future__ import annotations

import pytest
from builders import base_record, sweep_config

from trainables.config import TrainConfig
from trainables.config.train_config import shares_in_all
from tune.cluster.base_evaluation import evaluation_time_line


@pytest.mark.parametrize(
    ("report_every", "seconds", "workers", "text"),
    [
        (0.25, 149.0, 1, None),
        (0.25, 600.0, 1, "the 4 evaluations of a lora trial will take up to about 40 minutes"),
        (1, 60.0, 1, "the 24 evaluations of a lora trial will take up to about 24 minutes"),
        (0.25, 600.0, 3, "the 4 evaluations of a lora trial will take up to about 13 minutes"),
        (0.25, 449.0, 3, None),
        (1e6, 500.0, 1, None),
    ],
)
def test_long_evaluations_are_announced(
    report_every: float, seconds: float, workers: int, text: str | None
) -> None:
    config = sweep_config(  # of 90 samples
        train={"batch_size": 15, "micro_batch_size": 5, "report_every": report_every, "epochs": 4},
        resources={recipe: {"workers": workers} for recipe in ("lora", "full")},
    )
    line = evaluation_time_line(config, base_record(seconds=seconds))
    assert (line is None) if text is None else (line and line.startswith(text))
    assert line is None or "eval.limit" in line


@pytest.mark.parametrize("share", [0.05, 1 / 7, 0.3, 0.9])
def test_a_training_is_evaluated_at_equal_shares_of_its_length(share: float) -> None:
    train = TrainConfig(report_every=share, log_every=share / 2)
    count = shares_in_all(share)
    for total in range(20, 2000, 7):
        steps = sorted(train.report_steps(total))
        wanted = [*(n * share * total for n in range(1, len(steps))), total]
        assert len(steps) == count
        assert steps == pytest.approx(wanted, abs=0.5001)
        assert train.log_steps(total) >= set(steps)
