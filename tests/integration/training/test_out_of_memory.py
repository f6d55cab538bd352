"""Trials that run out of memory: the same numbers from smaller batches, and a record of it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from builders import trial_config
from measured import by_step
from transformers import LlamaModel

from trainables.config import TrainConfig
from trainables.errors import EvaluationOutOfMemory, OutOfMemory
from trainables.process.out_of_memory import (
    is_out_of_memory,
    train_within_memory,
    with_smaller_batches,
)
from trainables.records.schema import TrialStatus
from trainables.storage.locations import resolve
from trainables.training.full_sft import train_full_sft
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement
    from tune.config.sweep_config import SweepConfig


MICRO, EVAL = "memory/micro_batch_size", "memory/eval_batch_size"
TRAIN = {"steps": 8, "report_every": 3, "log_every": 1, "warmup": 0.25, "schedule": "cosine"}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "full, stage 0": {"method": "full", "deepspeed": {"zero_stage": 0}},
    "full, stage 2": {"method": "full", "deepspeed": {"zero_stage": 2}},
    "full, stage 3": {"method": "full", "deepspeed": {"zero_stage": 3}},
    "full, own settings": {
        "method": "full",
        "deepspeed": {"config": {"zero_optimization": {"stage": 2}}},
    },
}


class Device:
    """Holds so many rows of a training and of an evaluation; counts the passes that were made."""

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


def train(config: TrialConfig) -> list[Measurement]:
    reporter = ListReporter()
    function = train_lora if config.method == "lora" else train_full_sft
    train_within_memory(lambda smaller: function(smaller, reporter), config)
    return reporter.measurements


def assert_equal(mine: list[Measurement], expected: list[Measurement]) -> None:
    ours, theirs = by_step(mine), by_step(expected)
    assert list(ours) == list(theirs)
    for step, metrics in theirs.items():
        # Portions add up in another order; how much that changes differs between processors.
        assert ours[step] == pytest.approx(metrics, rel=1e-4, abs=1e-4), step


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        "full, stage 2",
        *(pytest.param(f"full, stage {stage}", marks=SLOW) for stage in (0, 3)),
    ],
)
def test_smaller_micro_batches_train_the_same(
    make_trial: Callable[..., TrialConfig], device: Device, kind: str
) -> None:
    undisturbed = train(make_trial(**KINDS[kind], train=TRAIN))
    assert {m.metrics[MICRO] for m in undisturbed} == {8}
    device.training_rows, device.passes = 3, 0
    reduced = train(make_trial(**KINDS[kind], train=TRAIN))
    assert {m.metrics[MICRO] for m in reduced} == {2}
    assert_equal(reduced, undisturbed)
    assert device.passes == 1 + 1 + 8 * 4  # of 8, of 4, then steps of four micro-batches


@pytest.mark.parametrize("kind", ["lora", "full, stage 2"])
def test_goes_on_from_the_newest_checkpoint(
    make_trial: Callable[..., TrialConfig], device: Device, kind: str
) -> None:
    undisturbed = train(make_trial(**KINDS[kind], train=TRAIN))
    device.training_rows, device.passes, device.ample_passes = 4, 0, 4
    reduced = train(make_trial(**KINDS[kind], train=TRAIN))
    assert [m.step for m in reduced] == [1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert [m.metrics[MICRO] for m in reduced] == [8] * 4 + [4] * 5
    assert_equal(reduced, undisturbed)


def test_ends_out_of_memory_at_one_sample(
    make_trial: Callable[..., TrialConfig], device: Device
) -> None:
    device.training_rows = 0
    trial = make_trial(train=TRAIN | {"micro_batch_size": 4})
    with pytest.raises(OutOfMemory) as caught:
        train(trial)
    assert str(caught.value).startswith(
        "out of memory at micro-batch size 4, then micro-batch size 2, then micro-batch size 1: "
        "CUDA out of memory. Tried to hold 1 rows.; try "
    )
    device.training_rows = 99
    assert train(make_trial(train=TRAIN))  # the process is fit for the next


@pytest.mark.parametrize("kind", ["lora", pytest.param("full, stage 3", marks=SLOW)])
def test_smaller_evaluation_batches_measure_the_same(
    make_trial: Callable[..., TrialConfig], device: Device, kind: str
) -> None:
    undisturbed = train(make_trial(**KINDS[kind], train=TRAIN))
    device.evaluation_rows, device.passes = 5, 0
    reduced = train(make_trial(**KINDS[kind], train=TRAIN))
    assert [m.metrics[EVAL] for m in reduced] == [16, 16] + [4] * 6
    assert {m.metrics[MICRO] for m in reduced} == {8}
    assert_equal(reduced, undisturbed)
    assert device.passes == 8  # no step was trained twice


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (
            "lora",
            "try a shorter data.max_length, train.gradient_checkpointing: true, or larger GPUs",
        ),
        (
            "full, stage 2",
            "try a shorter data.max_length, train.gradient_checkpointing: true, more "
            "resources.full.workers, a higher deepspeed.zero_stage, offloading, or larger GPUs",
        ),
        (
            "full, own settings",
            "try a shorter data.max_length, train.gradient_checkpointing: true, more "
            "resources.full.workers, a higher deepspeed.config.zero_optimization.stage, "
            "offloading, or larger GPUs",
        ),
    ],
)
def test_what_is_advised_is_what_fills_the_memory_of_the_method(
    make_trial: Callable[..., TrialConfig], kind: str, remedy: str
) -> None:
    def never_fits(_: TrialConfig) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(OutOfMemory) as caught:
        train_within_memory(never_fits, make_trial(**KINDS[kind], train=TRAIN))
    assert str(caught.value).endswith(f"CUDA out of memory.; {remedy}")


def test_ends_out_of_memory_at_evaluations_of_one_sample(
    make_trial: Callable[..., TrialConfig], device: Device
) -> None:
    device.evaluation_rows = 0
    with pytest.raises(OutOfMemory, match=r"batch size 16, then .* 8, .* 1: step 3, task \w+: "):
        train(make_trial(train=TRAIN))
    assert device.passes == 3


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "expected"),
    [
        (16, 8, 1, 4),
        (6, 3, 1, 1),
        (12, 6, 1, 3),
        (10, 5, 2, 1),
        (30, 15, 1, 6),
        (30, 15, 2, 5),
    ],
)
def test_every_micro_batch_fills_the_batch(
    batch: int, micro: int, workers: int, expected: int
) -> None:
    train = TrainConfig(batch_size=batch, micro_batch_size=micro)
    trial = trial_config(train=train, workers=workers)
    smaller = with_smaller_batches(trial, [], MemoryError())
    assert smaller.train.micro_batch_size == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (EvaluationOutOfMemory("step 3"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
            True,
        ),
        (RuntimeError("HIPBLAS_STATUS_NOT_INITIALIZED when calling `hipblasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), False),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"), True),
        (RuntimeError("Last error:\nFailed to CUDA calloc 8388608 bytes"), True),
        (RuntimeError("Last error:\nFailed to CUDA calloc async 608 bytes"), True),
        (RuntimeError("Last error:\nFailed to CUDA host alloc 4096 bytes"), True),
        (RuntimeError("Last error:\nFailed to CUDA malloc 6291456 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("unable to mmap 8 bytes from file: Cannot allocate memory (12)"), True),
        (OutOfMemory("out of memory at micro-batch size 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_it(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


# In workers of Ray nothing can be patched; there the model itself runs out of memory.
MODEL = """
import torch
from transformers import LlamaForCausalLM


class Hungry(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self._check, with_kwargs=True)

    def _check(self, model, arguments, options):
        rows = options.get("input_ids")
        rows = len(options["inputs_embeds"] if rows is None else rows)
        if self.training and rows > self.config.most_rows:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to hold {rows} rows.")
"""


@pytest.fixture
def run_sweep(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> Callable[..., SweepOutcome]:
    """A sweep of one trial on a model that trains no more than so many rows at once."""

    def run_sweep(most_rows: int, *overrides: str) -> SweepOutcome:
        model = tmp_path / f"hungry_{most_rows}"
        shutil.copytree(resolve(load().model.name), model)
        (model / "hungry.py").write_text(MODEL)
        config = json.loads((model / "config.json").read_text())
        config |= {
            "auto_map": {"AutoModelForCausalLM": "hungry.Hungry"},
            "architectures": ["Hungry"],
            "most_rows": most_rows,
        }
        (model / "config.json").write_text(json.dumps(config))
        sweep = load(
            f"model.name={model}",
            "model.trust_remote_code=true",
            "budget.trials=1",
            "sampler=random",
            "train.steps=6",
            "train.report_every=3",
            *overrides,
        )
        return Sweep(sweep, tmp_path / "sweep", base_cache).run([SweepListener()])

    return run_sweep


LORA = "search={lora: {rank: 4, alpha: 8, learning_rate: 1.0e-3}}"


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_the_record_says_so(run_sweep: Callable[..., SweepOutcome], tmp_path: Path) -> None:
    (record,) = run_sweep(2, LORA).records
    assert (record.status, record.reason) == (TrialStatus.COMPLETE, None)
    assert record.config.train.micro_batch_size == 8
    assert record.metric(MICRO) == 2
    with (tmp_path / "sweep" / "results.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["micro_batch_size"], row[MICRO]) == ("8", "2.0")
    log = Path(record.config.output_dir, "trial.log").read_text()
    assert "out of memory at micro-batch size 8" in log


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_trial_that_never_fits_is_told_as_out_of_memory(
    run_sweep: Callable[..., SweepOutcome],
) -> None:
    (record,) = run_sweep(0, LORA).records
    assert record.status is TrialStatus.OUT_OF_MEMORY
    assert record.reason is not None
    assert "micro-batch size 8, then micro-batch size 4" in record.reason


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_a_group_of_workers_agrees_on_smaller_micro_batches(
    run_sweep: Callable[..., SweepOutcome],
) -> None:
    (record,) = run_sweep(
        2,
        "search={full: {learning_rate: [1.0e-4]}}",
        "resources.full.workers=2",
        "train.micro_batch_size=4",
        "deepspeed.zero_stage=2",
    ).records
    assert (record.status, record.reason) == (TrialStatus.COMPLETE, None)
    assert record.metric(MICRO) == 2
    assert record.metric("train/global_step") == 6
