"""A training's clock continues over attempts, and stands still for other trials."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import trial_config

from trainables.config import TrainConfig
from trainables.data.dataset import TokenizedData
from trainables.metric_keys import (
    EVAL_SECONDS,
    GPU_HOURS,
    MAX_RESERVED,
    TOKENS_PER_SECOND,
    TRAIN_LOSS,
    TRAIN_SECONDS,
    TRAINABLE_PARAMETERS,
)
from trainables.training import measuring
from trainables.training.measuring import Measuring
from trainables.training.reporter import ListReporter


class Clock:
    """Stands still unless it is set."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    # No model is evaluated here.
    base = SimpleNamespace(record=SimpleNamespace(rows={}))
    monkeypatch.setattr(measuring.Base, "load", lambda folder: base)
    evaluator = SimpleNamespace(check_rows=lambda of_base: None)
    monkeypatch.setattr(measuring, "shared_evaluator", lambda model, suite: evaluator)
    return clock


def started(gpus_per_worker: float = 4, log_every: int = 1) -> Measuring:
    """A training on two workers."""
    train = TrainConfig(steps=10, report_every=10, log_every=log_every)
    config = trial_config(method="full", workers=2, gpus_per_worker=gpus_per_worker, train=train)
    data = TokenizedData(train=[None] * 80, validation=[], skipped=0, prompts=[])  # type: ignore[list-item]
    made = Measuring(config, ListReporter(), data, total_steps=10)
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad = False
    schedule: Any = SimpleNamespace(get_last_lr=lambda: [1e-3])
    trainer: Any = SimpleNamespace(model=model, lr_scheduler=schedule)
    made.start(trainer)
    return made


def after_step(measuring: Measuring, step: int, tokens: int, loss: float = 1.0) -> dict[str, float]:
    trainer: Any = measuring._trainer
    trainer.state = SimpleNamespace(global_step=step, num_input_tokens_seen=tokens)
    measuring.before_step()
    measuring.after_step({"loss": loss})
    assert measuring.last is not None
    return measuring.last.metrics


@pytest.mark.parametrize(
    ("gpus_per_worker", "devices", "gpus"), [(4, 8, 8), (0.25, 0.5, 0.5), (0, 2, 0)]
)
def test_cost_is_of_all_gpus_and_speed_of_one_gpu_or_worker(
    clock: Clock, gpus_per_worker: float, devices: float, gpus: float
) -> None:
    measuring = started(gpus_per_worker)
    clock.now += 75
    for seconds in (15.0, 5.0):
        measuring.charge_evaluation(seconds)
    measuring.exclude(15.0)  # other trials on the same device
    measured = after_step(measuring, step=1, tokens=6000)
    assert (measured[TRAIN_SECONDS], measured[EVAL_SECONDS]) == (40.0, 20.0)
    assert measured[TOKENS_PER_SECOND] == 6000 / 40 / devices
    assert measured[GPU_HOURS] == pytest.approx(60 / 3600 * gpus)
    assert measured[TRAINABLE_PARAMETERS] == 6


def test_a_resumed_training_continues_time_loss_and_peak_memory(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = 70 << 30
    monkeypatch.setattr(measuring, "peak_bytes", lambda: peak)
    first, second = (started(log_every=4) for _ in range(2))
    clock.now += 60
    first.charge_evaluation(20.0)
    for step, loss in enumerate((9.0, 1.0, 2.0), start=1):  # the first is reported alone
        after_step(first, step, tokens=step, loss=loss)
    second.restore(first.carry())
    second.start(first._trainer)
    peak = 20 << 30
    clock.now += 30
    measured = after_step(second, step=4, tokens=7000, loss=6.0)
    assert measured[TRAIN_LOSS] == (1.0 + 2.0 + 6.0) / 3
    assert (measured[TRAIN_SECONDS], measured[EVAL_SECONDS]) == (70.0, 20.0)
    assert measured[GPU_HOURS] == pytest.approx(90 / 3600 * 8)
    assert measured[MAX_RESERVED] == 70
    peak = 80 << 30
    assert after_step(second, step=8, tokens=8000)[MAX_RESERVED] == 80
