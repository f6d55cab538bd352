"""TRL's configuration of a trial."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import trial_config
from transformers import get_scheduler

from trainables.config import TrialConfig
from trainables.training.training_loop import sft_config


def trial(**train: Any) -> TrialConfig:
    config = trial_config()
    model = config.model.model_copy(update={"dtype": "float32"})
    settings = config.train.model_copy(update=train)
    return config.model_copy(update={"model": model, "train": settings})


@pytest.mark.parametrize(
    ("steps", "warmup", "schedule", "expected"),
    [
        (10, 0.15, "linear", [0, 0.5, *(1 - step / 8 for step in range(8))]),
        (8, 0.5, "constant", [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        (1, 0.05, "cosine", [1]),  # the only step is no warm-up, whose rate is 0
    ],
)
def test_the_learning_rate_follows_warmup_and_schedule(
    steps: int, warmup: float, schedule: str, expected: list[float]
) -> None:
    arguments = sft_config(trial(steps=steps, warmup=warmup, schedule=schedule), samples=64)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(steps), steps
    )
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / arguments.learning_rate)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)
