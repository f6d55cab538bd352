"""What a training tells of itself: its clock runs on over attempts, but not for other trials."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import trial_config

from trainables.config import TrainConfig
from trainables.data.dataset import TokenizedData
from trainables.errors import Diverged
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


def costs(measuring: Measuring, step: int, tokens: int, loss: float = 1.0) -> dict[str, float]:
    trainer: Any = measuring._trainer
    trainer.state = SimpleNamespace(global_step=step, num_input_tokens_seen=tokens)
    measuring.before_step()
    measuring.after_step({"loss": loss})
    assert measuring.last is not None
    return measuring.last.metrics


def test_costs_are_of_all_gpus_and_speed_is_of_one(clock: Clock) -> None:
    clock.now = 1000.0
    measuring = started()
    clock.now += 60
    for seconds in (15.0, 5.0):
        measuring.charge_evaluation(seconds)
    measured = costs(measuring, step=1, tokens=6000)
    assert (measured[TRAIN_SECONDS], measured[EVAL_SECONDS]) == (40.0, 20.0)
    assert measured[TOKENS_PER_SECOND] == 6000 / 40 / 8
    assert measured[GPU_HOURS] == pytest.approx(60 / 3600 * 8)
    assert measured[TRAINABLE_PARAMETERS] == 6


@pytest.mark.parametrize(("gpus_per_worker", "devices"), [(0.25, 0.5), (1, 2), (0, 2)])
def test_speed_is_of_a_gpu_or_without_one_of_a_worker(
    clock: Clock, gpus_per_worker: float, devices: float
) -> None:
    measuring = started(gpus_per_worker)
    clock.now += 40
    measured = costs(measuring, step=1, tokens=6000)
    assert measured[TOKENS_PER_SECOND] == 6000 / 40 / devices


def test_time_that_a_device_spent_on_others_does_not_count(clock: Clock) -> None:
    measuring = started()
    clock.now += 60
    measuring.exclude(15.0)
    assert costs(measuring, step=1, tokens=6000)[TRAIN_SECONDS] == 45.0


def test_a_resumed_training_goes_on_counting(clock: Clock) -> None:
    first = started()
    clock.now += 60
    first.charge_evaluation(20.0)
    carried = first.carry()
    clock.now = 5000.0  # it was long in coming
    second = started()
    second.restore(carried)
    clock.now += 30
    measured = costs(second, step=2, tokens=7000)
    assert (measured[TRAIN_SECONDS], measured[EVAL_SECONDS]) == (70.0, 20.0)
    assert measured[TOKENS_PER_SECOND] == 7000 / 70 / 8
    assert measured[GPU_HOURS] == pytest.approx(90 / 3600 * 8)
    third = started()
    third.restore(second.carry())
    clock.now += 10
    assert costs(third, step=3, tokens=8000)[TRAIN_SECONDS] == 80.0


def test_a_resumed_training_s_loss_is_the_mean_since_the_last_report(clock: Clock) -> None:
    first, second = (started(log_every=4) for _ in range(2))
    clock.now += 60
    for step, loss in enumerate((9.0, 1.0, 2.0), start=1):
        costs(first, step, tokens=step, loss=loss)
    second.restore(first.carry())
    measured = costs(second, step=4, tokens=4, loss=6.0)
    assert measured[TRAIN_LOSS] == (1.0 + 2.0 + 6.0) / 3


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_a_loss_or_a_gradient_alone_that_is_no_number_is_a_divergence(
    clock: Clock, loss: float, norm: float
) -> None:
    """After the last step nobody would hear of weights that a gradient has made NaN."""
    measuring = started()
    trainer: Any = measuring._trainer
    trainer.state = SimpleNamespace(global_step=10)
    with pytest.raises(Diverged):
        measuring.after_step({"loss": loss, "grad_norm": norm})


def test_a_resumed_training_s_peak_is_the_highest_of_all_its_attempts(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak_after(carried: dict[str, Any], gib: int) -> float:
        monkeypatch.setattr(measuring, "peak_bytes", lambda: gib << 30)
        second = started()
        second.restore(carried)
        clock.now += 30
        return costs(second, step=2, tokens=7000)[MAX_RESERVED]

    monkeypatch.setattr(measuring, "peak_bytes", lambda: 70 << 30)
    carried = started().carry()
    assert (peak_after(carried, 20), peak_after(carried, 80)) == (70, 80)
