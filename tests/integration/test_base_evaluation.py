"""The base model's evaluation: once per content, with warnings where it cannot serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trainables.base_evaluation import Base, evaluate_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tune.sweep_config import SweepConfig

pytestmark = pytest.mark.integration
FEW = ("eval.retention=[list_last]", "eval.ood=[]", "eval.limit=12", "eval.general_text=null")
OBJECTIVE = "objectives=[{metric: in_domain/acc_mean, mode: max}]"


@pytest.fixture
def evaluate(load: Callable[..., SweepConfig], tmp_path: Path) -> Callable[..., Path]:
    def evaluate(*overrides: str) -> Path:
        config = load(*FEW, OBJECTIVE, *overrides)
        return evaluate_base(config.model, config.data, config.eval, config.seed, tmp_path)

    return evaluate


def test_same_content_is_evaluated_once(evaluate: Callable[..., Path]) -> None:
    first = evaluate()
    written = (first / "base.json").stat().st_mtime_ns
    assert evaluate("train.steps=99", "name=other") == first
    assert (first / "base.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "change",
    ["eval.limit=11", "eval.retention=[list_max]", "data.max_length=9", "eval.kl_tokens=3"],
)
def test_other_content_is_evaluated_anew(evaluate: Callable[..., Path], change: str) -> None:
    assert evaluate(change) != evaluate()


def test_retention_task_at_chance_draws_a_warning(evaluate: Callable[..., Path]) -> None:
    record = Base.load(
        evaluate("eval.in_domain=[list_last]", "eval.retention=[target_relay]")
    ).record
    (warning,) = record.warnings
    assert "retention task target_relay" in warning
    assert "at chance (0.250)" in warning


def test_samples_longer_than_max_length_are_counted(evaluate: Callable[..., Path]) -> None:
    everything = Base.load(evaluate()).record
    record = Base.load(evaluate("data.max_length=8")).record
    assert record.skipped_samples > 0
    assert record.train_samples + record.skipped_samples == everything.train_samples
    assert f"{record.skipped_samples} of {everything.train_samples}" in record.warnings[0]
