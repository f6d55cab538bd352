"""The watch over trials that report nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import measurement, trial_config

from trainables.config import TrialConfig
from trainables.process import watchdog
from trainables.records.schema import TrialResult
from trainables.workers import trainable as under_ray


def test_watchdog_starts_over_after_an_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller batches train from the last checkpoint on, and have all the time for a report."""
    calls: list[float | None] = []

    def train(trial: TrialConfig, reporter: Any) -> TrialResult:
        calls.append(trial.train.micro_batch_size)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return TrialResult(last=measurement(1))

    monkeypatch.setattr(under_ray, "trial_function", lambda trial: train)
    monkeypatch.setattr(under_ray, "check_granted_gpus", lambda: None)
    monkeypatch.setattr(watchdog, "start", calls.append)
    trial = trial_config(minutes_per_report=7.0)
    under_ray._train(trial, trial, None)
    batch = trial.train.micro_batch_size
    assert calls == [7.0, batch, 7.0, batch // 2]
