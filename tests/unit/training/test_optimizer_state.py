"""Checkpoints of optimizers and of random states."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trainables.methods.lora import Lora
from trainables.training import checkpoint, optimizer_state, random_state

PROGRESS = checkpoint.Progress(step=2, tokens_seen=0, scheduler={}, carried={})
METHOD = Lora(rank=1, alpha=1)


@pytest.mark.parametrize("most", ["32GB", "0.1KB"], ids=["one file", "several"])
def test_a_parameter_that_was_not_always_used_resumes_with_its_own_step_count(
    most: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the experts of a mixture to which no token was sent in some steps, or in none."""
    monkeypatch.setattr(checkpoint, "_MOST_IN_A_FILE", most)
    experts = torch.nn.ModuleList(torch.nn.Linear(3, 5) for _ in range(3))
    adam = torch.optim.AdamW(experts.parameters(), lr=0.1)

    def step(*used: int) -> list[torch.Tensor]:
        adam.zero_grad()
        sum(experts[expert](torch.ones(3)).sum() for expert in used).backward()
        adam.step()
        return [parameter.detach().clone() for parameter in experts.parameters()]

    step(0, 1)
    step(0)
    snapshot = checkpoint.take(experts, adam, PROGRESS, METHOD)
    undisturbed = step(0, 1, 2)  # the snapshot is a copy
    checkpoint.write(tmp_path / "step", snapshot)
    files = list((tmp_path / "step").glob("training*.safetensors"))
    assert (len(files) == 1) == (most == "32GB")
    adam = torch.optim.AdamW(experts.parameters(), lr=0.1)
    checkpoint.load_training_state(tmp_path / "step", experts, adam, METHOD)
    for mine, other in zip(step(0, 1, 2), undisturbed, strict=True):
        assert torch.equal(mine, other)


def test_an_unknown_optimizer_s_state_is_not_restored(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 5)
    known = torch.optim.AdamW(model.parameters())
    checkpoint.write(tmp_path / "step", checkpoint.take(model, known, PROGRESS, METHOD))
    copies = [parameter.detach().clone() for parameter in model.parameters()]
    unknown = SimpleNamespace(optimizer=torch.optim.AdamW(copies))
    with pytest.raises(optimizer_state.CannotResume, match=r"deepspeed\.config.*SimpleNamespace"):
        checkpoint.load_training_state(tmp_path / "step", model, unknown, METHOD)


def drawn() -> list[list[float]]:
    """From each library, numbers and normal ones, of which numpy makes two at a time."""
    return [
        [*torch.rand(2).tolist(), *torch.randn(3).tolist()],
        [*np.random.random(2).tolist(), *np.random.normal(size=3).tolist()],
        [random.random(), random.random()],
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_worker_draws_the_random_numbers_of_an_undisturbed_one(
    rank: int, tmp_path: Path
) -> None:
    layer: Any = torch.nn.Linear(2, 1)
    adam = torch.optim.AdamW(layer.parameters())
    states, expected = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        drawn()
        snapshot = checkpoint.take(layer, adam, PROGRESS, METHOD)
        states += snapshot.random
        expected.append(drawn())
    checkpoint.write(tmp_path / "step", replace(snapshot, random=states))
    state = checkpoint.load_random_state(tmp_path / "step", rank)
    assert state is not None
    random_state.restore(state)
    assert drawn() == expected[rank]
    assert checkpoint.load_random_state(tmp_path / "step", rank=2) is None
