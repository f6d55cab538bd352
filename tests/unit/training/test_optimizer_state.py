"""Checkpoints of optimizers that count steps one by one, that are not known here, or on NVMe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainables.training import checkpoint, full_sft, optimizer_state


@pytest.mark.parametrize("most", ["32GB", "0.1KB"], ids=["one file", "several"])
def test_one_that_was_not_always_used_resumes_with_its_own_count(
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
    progress = checkpoint.Progress(step=2, tokens_seen=0, scheduler={}, carried={})
    checkpoint.write(tmp_path / "step", checkpoint.take(experts, adam, progress))
    files = list((tmp_path / "step").glob("training*.safetensors"))
    assert (len(files) == 1) == (most == "32GB")
    undisturbed = step(0, 1, 2)
    torch.nn.init.ones_(experts[1].weight)
    adam = torch.optim.AdamW(experts.parameters(), lr=0.1)
    checkpoint.load_training_state(tmp_path / "step", experts, adam)
    for mine, other in zip(step(0, 1, 2), undisturbed, strict=True):
        assert torch.equal(mine, other)


def test_an_optimizer_that_updates_what_is_not_known_does_not_go_on(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 5)
    known = torch.optim.AdamW(model.parameters())
    progress = checkpoint.Progress(step=2, tokens_seen=0, scheduler={}, carried={})
    checkpoint.write(tmp_path / "step", checkpoint.take(model, known, progress))
    copies = [parameter.detach().clone() for parameter in model.parameters()]
    unknown = SimpleNamespace(optimizer=torch.optim.AdamW(copies))
    with pytest.raises(optimizer_state.CannotGoOn, match="got SimpleNamespace around AdamW"):
        checkpoint.load_training_state(tmp_path / "step", model, unknown)


def test_a_part_that_lies_on_nvme_is_restored() -> None:
    """DeepSpeed has one element in its place; here it has none of NVMe, whose library may lack."""
    program = """if True:
        import deepspeed, torch
        from trainables.training import full_sft, optimizer_state

        full_sft._compile_nothing()
        layer = torch.nn.Linear(4, 3, bias=False)
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
        adam = torch.optim.AdamW(layer.parameters())
        deepspeed.initialize(
            model=layer, optimizer=adam, config=settings | {"zero_allow_untested_optimizer": True}
        )
        partition = layer.weight.ds_tensor
        in_memory, partition.data = partition.data, torch.tensor(1.0)
        optimizer_state._set_partition(layer.weight, torch.full((3, 4), 7.0), None)
        partition.data = in_memory
        restored = deepspeed.utils.safe_get_full_fp32_param(layer.weight)
        assert restored.tolist() == [[7.0] * 4] * 3, restored
    """
    alone = full_sft._SINGLE_WORKER | {"DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=os.environ | alone, check=True)
