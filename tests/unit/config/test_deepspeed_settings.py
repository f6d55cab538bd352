"""A user's own DeepSpeed settings that contradict the sweep are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_files import edited

from tune.config.deepspeed_settings import deepspeed_faults
from tune.config.sweep_file import load_sweep

ADAMW = {"type": "AdamW", "params": {"lr": "auto"}}


def refused(tmp_path: Path, full: dict[str, Any] | None = None, **own: Any) -> str:
    """All faults as text."""
    file = tmp_path / "tiny.yaml"
    settings = {"zero_optimization": {"stage": 2}, **own}
    space = {"learning_rate": [1e-5], **(full or {})}
    text = edited(search__full=space, deepspeed={"config": settings})
    file.write_text(text, encoding="utf-8")
    return "\n".join(map(str, deepspeed_faults(load_sweep(str(file), []))))


@pytest.mark.parametrize("zero", [None, {}, {"stage": 5}])
def test_a_stage_of_zero_is_required(zero: Any, tmp_path: Path) -> None:
    assert "zero_optimization.stage: must be 0, 1, 2 or 3" in refused(
        tmp_path, zero_optimization=zero
    )


@pytest.mark.parametrize(
    ("own", "facts"),
    [
        ({"scheduler": {"type": "WarmupLR"}}, ("train.schedule", "train.warmup")),
        ({"optimizer": {"type": "Muon"}}, ("optimizer.type", "AdamW", "Muon")),
        ({"optimizer": {**ADAMW, "params": {"maximize": True}}}, ("maximize", "known: lr")),
        ({"optimizer": {**ADAMW, "params": {"lr": 1e-5}}}, ("params.lr 1e-05", "search")),
        ({"optimizer": {**ADAMW, "params": {"weight_decay": 1}}}, ("train.weight_decay",)),
        (
            {"optimizer": {**ADAMW, "params": {"betas": [0.9, 0.95]}}},
            ("other trials", "[0.9, 0.95]"),
        ),
        ({"train_micro_batch_size_per_gpu": 4}, ("train.micro_batch_size", "write auto")),
        ({"train_batch_size": 32}, ("train.batch_size", "32")),
        ({"gradient_clipping": 0.5}, ("train.max_grad_norm", "0.5")),
        ({"fp16": {"enabled": True}}, ("model.dtype", "fp16.enabled true")),
        ({"sequence_parallel_size": 2}, ("worker", "write 1")),
    ],
)
def test_what_the_sweep_sets_itself_is_refused(
    own: dict[str, Any], facts: tuple[str, ...], tmp_path: Path
) -> None:
    message = refused(tmp_path, **own)
    assert all(fact in message for fact in facts)


def test_settings_may_repeat_those_of_the_sweep_unless_they_are_searched(tmp_path: Path) -> None:
    own: dict[str, Any] = {
        "gradient_clipping": 1,
        "train_batch_size": 16,
        "bf16": {"enabled": "auto"},
        "fp16": None,
        "scheduler": None,
        "optimizer": {
            "type": "adamw",
            "params": {"betas": [0.9, 0.999], "weight_decay": 0.0, "adam_w_mode": True},
        },
    }
    assert refused(tmp_path, **own) == ""
    assert "train.batch_size" in refused(tmp_path, {"batch_size": [4, 8]}, **own)
    assert "train.weight_decay" in refused(tmp_path, {"weight_decay": [0, 0.1]}, **own)
