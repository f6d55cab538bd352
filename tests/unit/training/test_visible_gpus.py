"""A trial's process takes one GPU, however many it sees."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState
from builders import trial_config

from trainables.training.run import sft_config


def test_a_micro_batch_is_of_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own way with several is a micro-batch for each of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    trial = trial_config()
    model = trial.model.model_copy(update={"dtype": "float32"})
    try:
        arguments = sft_config(trial.model_copy(update={"model": model}), samples=64)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert arguments.device.type == "cuda"
    assert arguments.train_batch_size == trial.train.micro_batch_size
    assert arguments.n_gpu == 1
