"""Trials that run out of memory train the same from smaller batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from measured import by_step
from trained_trials import TRAIN, train
from transformers import LlamaModel

from trainables.errors import EvaluationOutOfMemory, OutOfMemory
from trainables.process.out_of_memory import train_within_memory
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_trials import Run

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement

    MakeTrial = Callable[..., TrialConfig]

MICRO, EVAL = "memory/micro_batch_size", "memory/eval_batch_size"


class Device:
    """Has room for so many rows of a training and of an evaluation; counts training passes."""

    def __init__(self) -> None:
        self.training_rows = self.evaluation_rows = 99
        self.ample_passes = 0  # so many passes of the training have room for all rows
        self.passes = 0

    def check(self, rows: int, training: bool) -> None:
        self.passes += training
        limit = self.training_rows if training else self.evaluation_rows
        if rows > limit and not (training and self.passes <= self.ample_passes):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to hold {rows} rows.")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device, forward = Device(), LlamaModel.forward

    def checked(self: Any, *arguments: Any, **options: Any) -> Any:
        ids = options.get("input_ids")
        rows = options["inputs_embeds"] if ids is None else ids
        if ids is None or ids.tolist() != [[*range(8)]]:  # `choose_loss`, which always fits
            device.check(len(rows), self.training)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(LlamaModel, "forward", checked)
    return device


def measured_within_memory(config: TrialConfig) -> list[Measurement]:
    reporter = ListReporter()
    train_within_memory(lambda smaller: train(smaller, reporter), config)
    return reporter.measurements


def assert_equal(found: list[Measurement], expected: list[Measurement]) -> None:
    ours, theirs = by_step(found), by_step(expected)
    assert list(ours) == list(theirs)
    for step, metrics in theirs.items():
        # Portions add up in another order; how much that changes differs between processors.
        assert ours[step] == pytest.approx(metrics, rel=1e-4, abs=1e-4), step


def test_smaller_micro_batches_train_the_same(
    make_trial: MakeTrial, run: Callable[..., Run], device: Device
) -> None:
    """From the newest checkpoint on, with the same effective batch."""
    parts = {"method": "lora", "train": TRAIN | {"steps": 6}}
    undisturbed = run(make_trial(**parts)).measurements
    device.passes, device.training_rows, device.ample_passes = 0, 1, 8
    reduced = measured_within_memory(make_trial(**parts))
    assert [m.step for m in reduced] == [1, 2, 3, 4, 4, 5, 6]
    assert [m.metrics[MICRO] for m in reduced] == [4] * 4 + [1] * 3
    assert_equal(reduced, undisturbed)
    assert device.passes == 4 * 2 + 1 + 1 + 3 * 8  # with 4 rows, with 2, then of single rows


def test_smaller_evaluation_batches_measure_the_same(
    make_trial: MakeTrial, run: Callable[..., Run], device: Device
) -> None:
    train = TRAIN | {"steps": 3}
    undisturbed = run(make_trial(train=train)).measurements
    device.passes, device.evaluation_rows = 0, 5
    reduced = measured_within_memory(make_trial(train=train))
    assert [m.metrics[EVAL] for m in reduced] == [16, 16, 4]
    assert {m.metrics[MICRO] for m in reduced} == {4}
    assert_equal(reduced, undisturbed)
    assert device.passes == 3 * 2  # no step was trained twice


@pytest.mark.parametrize(
    ("parts", "error", "facts"),
    [
        (
            {"method": "lora"},
            torch.OutOfMemoryError("CUDA out of memory."),
            ["micro-batch size 8, then micro-batch size 4", "then micro-batch size 1: CUDA out of"],
        ),
        ({"method": "lora"}, EvaluationOutOfMemory("step 3"), ["batch size 16, then ", "step 3"]),
        (
            {"method": "full", "deepspeed": {"zero_stage": 2}},
            MemoryError(),
            ["resources.full.workers", "deepspeed.zero_stage", "offloading"],
        ),
        (
            {"method": "full", "deepspeed": {"config": {"zero_optimization": {"stage": 2}}}},
            MemoryError(),
            ["deepspeed.config.zero_optimization.stage"],
        ),
    ],
)
def test_a_trial_that_never_fits_says_what_was_tried_and_what_helps(
    make_trial: MakeTrial, parts: dict[str, Any], error: Exception, facts: list[str]
) -> None:
    def never_fits(_: TrialConfig) -> None:
        raise error

    with pytest.raises(OutOfMemory) as caught:
        train_within_memory(never_fits, make_trial(**parts))
    for fact in (*facts, "data.max_length", "train.gradient_checkpointing: true", "larger GPUs"):
        assert fact in str(caught.value)
    assert ("offloading" in str(caught.value)) == (parts["method"] == "full")
