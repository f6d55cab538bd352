"""A trial that goes on from a checkpoint measures what an undisturbed one does, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
import torch
from measured import by_step
from safetensors.torch import load_file

from trainables.metric_keys import IN_DOMAIN_ACC, TRAIN_LOSS, TRAIN_SECONDS
from trainables.models.model_shape import read_shape
from trainables.process.memory_estimate import disk_estimate
from trainables.training import checkpoint
from trainables.training.checkpoint_files import CheckpointLost, is_valid, newest_valid
from trainables.training.checkpointing import Checkpoints
from trainables.training.full_sft import train_full_sft
from trainables.training.lora import train_lora
from trainables.training.measuring import Measuring
from trainables.training.reporter import ListReporter
from trainables.workers.trial_outcome import verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement


_KILLED_AT = 11
_ZERO_1_WITH_FP32_GRADIENTS = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "lora with dropout": {"method": "lora", "lora": {"dropout": 0.2}},
    "full, stage 0": {"method": "full", "deepspeed": {"zero_stage": 0}},
    "full, stage 0, bfloat16": {
        "method": "full",
        "model": {"dtype": "bfloat16"},
        "deepspeed": {"zero_stage": 0},
    },
    # Those of several workers resume in float32: test_worker_groups.py, test_uneven_shards.py.
    "full, stage 2, bfloat16": {
        "method": "full",
        "model": {"dtype": "bfloat16"},
        "deepspeed": {"zero_stage": 2},
    },
    "full, stage 3, bfloat16": {
        "method": "full",
        "model": {"dtype": "bfloat16"},
        "deepspeed": {"zero_stage": 3},
    },
    "full, stage 1, bfloat16, gradients in float32": {
        "method": "full",
        "model": {"dtype": "bfloat16"},
        "deepspeed": {"config": _ZERO_1_WITH_FP32_GRADIENTS},
    },
}
TRAIN = {
    "steps": 12,
    "batch_size": 8,
    "micro_batch_size": 4,
    "warmup": 0.25,
    "schedule": "cosine",
    "report_every": 5,
    "log_every": 1,
}


class Killed(Exception):
    pass


class DyingReporter(ListReporter):
    def report(self, measurement: Measurement) -> None:
        super().report(measurement)
        if measurement.step == _KILLED_AT:
            raise Killed


def train(config: TrialConfig, reporter: ListReporter) -> list[Measurement]:
    (train_lora if config.method == "lora" else train_full_sft)(config, reporter)
    return reporter.measurements


def interrupted(
    make_trial: Callable[..., TrialConfig],
    parts: dict[str, Any],
    reporter: ListReporter | None = None,
) -> TrialConfig:
    """A trial that was killed in the middle."""
    first = make_trial(**parts, train=TRAIN)
    with pytest.raises(Killed):
        train(first, reporter or DyingReporter())
    return first


MUCH_ALIKE = ("full, stage 0, bfloat16", "full, stage 1, bfloat16, gradients in float32")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in MUCH_ALIKE)) for kind in KINDS],
)
def test_resumed_trial_measures_what_an_undisturbed_one_does(
    make_trial: Callable[..., TrialConfig], kind: str
) -> None:
    undisturbed = by_step(train(make_trial(**KINDS[kind], train=TRAIN), ListReporter()))
    killed = DyingReporter()
    first = interrupted(make_trial, KINDS[kind], killed)
    second = make_trial(**KINDS[kind], train=TRAIN, earlier_attempts=(first.output_dir,))
    measured = train(second, ListReporter())
    resumed = by_step(measured)
    assert min(resumed) == 11  # the step after the checkpoint
    assert resumed == {step: undisturbed[step] for step in resumed}
    (before,) = (m.metrics[TRAIN_SECONDS] for m in killed.measurements if m.step == 9)
    assert measured[0].metrics[TRAIN_SECONDS] > before


@pytest.mark.parametrize(
    ("dtype", "before", "after"),
    [
        ("float32", {"zero_stage": 0}, {"zero_stage": 2}),
        pytest.param(
            "float32",
            {"zero_stage": 2},
            {"zero_stage": 3, "offload_optimizer": True},
            marks=pytest.mark.slow,
        ),
        ("bfloat16", {"zero_stage": 2}, {"zero_stage": 3, "offload_parameters": True}),
    ],
)
def test_a_trial_resumes_under_other_memory_settings(
    make_trial: Callable[..., TrialConfig], dtype: str, before: Any, after: Any
) -> None:
    parts = {"method": "full", "model": {"dtype": dtype}}
    undisturbed = by_step(train(make_trial(**parts, deepspeed=before, train=TRAIN), ListReporter()))
    first = interrupted(make_trial, parts | {"deepspeed": before})
    earlier = (first.output_dir,)
    second = make_trial(**parts, deepspeed=after, train=TRAIN, earlier_attempts=earlier)
    resumed = by_step(train(second, ListReporter()))
    assert min(resumed) == 11
    for step, metrics in resumed.items():
        assert metrics[TRAIN_LOSS] == pytest.approx(undisturbed[step][TRAIN_LOSS], abs=1e-3)


@pytest.mark.parametrize(
    "parts",
    [
        {"method": "lora", "lora": {"rank": 32}},
        {"method": "full", "model": {"dtype": "bfloat16"}, "deepspeed": {"zero_stage": 2}},
    ],
)
def test_the_disk_takes_what_is_forecast(
    make_trial: Callable[..., TrialConfig], parts: dict[str, Any]
) -> None:
    trial = make_trial(**parts, train=TRAIN)
    train(trial, ListReporter())
    shape = read_shape(trial.model)
    assert shape is not None
    forecast = disk_estimate(shape, trial)
    assert sizes(Path(trial.weights_dir)) == pytest.approx([forecast.weights], rel=0.02)
    checkpoints = sorted(Path(trial.output_dir).glob("checkpoints/step_*"))
    assert [sizes(c, "training*") for c in checkpoints] == [
        pytest.approx([forecast.checkpoint], rel=0.02)
    ] * 2


def sizes(folder: Path, files: str = "*.safetensors") -> list[int]:
    return [file.stat().st_size for file in folder.glob(files)]


@pytest.fixture(scope="module")
def killed_trial(make_trial: Callable[..., TrialConfig]) -> TrialConfig:
    return interrupted(make_trial, KINDS["lora with dropout"])


@pytest.fixture
def killed(killed_trial: TrialConfig, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A copy of a killed trial's folder and its checkpoints, oldest first."""
    folder = tmp_path / "attempt_1"
    shutil.copytree(killed_trial.output_dir, folder)
    return folder, sorted(folder.glob("checkpoints/step_*"))


def test_newest_two_checkpoints_are_kept(killed: tuple[Path, list[Path]]) -> None:
    _, checkpoints = killed
    assert [path.name for path in checkpoints] == ["step_00000005", "step_00000010"]


@pytest.mark.parametrize("file", ["training.safetensors", "progress.json", "random_0.safetensors"])
def test_damaged_checkpoint_falls_back_to_the_one_before(
    killed: tuple[Path, list[Path]], file: str
) -> None:

    folder, (older, newer) = killed
    content = bytearray((newer / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newer / file).write_bytes(content)
    assert not is_valid(newer)
    assert newest_valid([folder]) == older


def test_a_training_sets_aside_the_damaged_checkpoint_that_it_does_not_go_on_from(
    killed: tuple[Path, list[Path]], killed_trial: TrialConfig, tmp_path: Path
) -> None:
    """It would keep it as its newest, and delete an intact one."""
    folder, (_, newer) = killed
    (newer / "progress.json").write_text("{")
    changes = {"earlier_attempts": (str(folder),), "output_dir": str(tmp_path / "attempt_2")}
    train(killed_trial.model_copy(update=changes), ListReporter())
    assert (newer.parent / f"damaged_{newer.name}").exists()


def test_a_checkpoint_is_read_before_anything_is_reported(
    killed: tuple[Path, list[Path]],
    killed_trial: TrialConfig,
    make_trial: Callable[..., TrialConfig],
    tmp_path: Path,
) -> None:
    """The attempt that wrote it may live on behind a cut network, and delete it."""
    folder, (_, newer) = killed
    (newer / "evaluated.json").unlink()

    class Deleting(ListReporter):
        def report(self, measurement: Measurement) -> None:
            super().report(measurement)
            shutil.rmtree(newer, ignore_errors=True)

    changes = {"earlier_attempts": (str(folder),), "output_dir": str(tmp_path / "attempt_2")}
    resumed = by_step(train(killed_trial.model_copy(update=changes), Deleting()))
    assert sorted(resumed) == [10, 11, 12]
    undisturbed = by_step(
        train(make_trial(**KINDS["lora with dropout"], train=TRAIN), ListReporter())
    )
    assert resumed == {step: undisturbed[step] for step in resumed}


@pytest.mark.parametrize("gone", ["*", "random_*", "training*", "progress*"])
def test_a_checkpoint_that_is_deleted_before_it_is_read_is_lost(
    killed: tuple[Path, list[Path]],
    killed_trial: TrialConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gone: str,
) -> None:
    """As by the attempt that wrote it, or by the disk budget, while a model is loaded."""
    folder, (_, newer) = killed
    late, start = newer.with_name("step_00000011"), Checkpoints.start

    def start_late(*arguments: Any) -> None:
        shutil.copytree(newer, late)
        start(*arguments)
        for file in newer.glob(gone):
            file.unlink()

    monkeypatch.setattr(Checkpoints, "start", start_late)
    changes = {"earlier_attempts": (str(folder),), "output_dir": str(tmp_path / "attempt_2")}
    second, reporter = killed_trial.model_copy(update=changes), ListReporter()
    with pytest.raises(CheckpointLost, match="step_00000010") as caught:
        train(second, reporter)
    assert not reporter.measurements
    with pytest.raises(CheckpointLost) as raised:  # so it goes on in its next attempt
        verdict(second, caught.value)
    assert raised.value is caught.value
    assert late.exists()  # for that one to go on from


def test_half_written_checkpoint_is_not_found(killed: tuple[Path, list[Path]]) -> None:

    folder, (older, newer) = killed
    (newer / "files.json").unlink()
    assert newest_valid([folder]) == older


@pytest.mark.parametrize("kind", ["lora with dropout", "full, stage 0"])
def test_a_trial_that_is_lost_before_its_end_is_recorded_trains_nothing_again(
    make_trial: Callable[..., TrialConfig], kind: str
) -> None:
    first, reporter = make_trial(**KINDS[kind], train=TRAIN), ListReporter()
    train(first, reporter)
    second = make_trial(**KINDS[kind], train=TRAIN, earlier_attempts=(first.output_dir,))
    resumed = by_step(train(second, ListReporter()))
    assert resumed == {12: by_step(reporter.measurements)[12]}
    before, after = (
        [load_file(file) for file in sorted(Path(trial.weights_dir).glob("*.safetensors"))]
        for trial in (first, second)
    )
    assert before
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(old[name].equal(new[name]) for name in old)


def test_workers_that_see_other_checkpoints_resume_from_the_same_one(
    killed: tuple[Path, list[Path]],
    killed_trial: TrialConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, (_, newer) = killed
    other = tmp_path / "other node" / "attempt_1"
    shutil.copytree(folder, other)
    shutil.rmtree(newer)  # cut off while it was fetched
    sent: list[Any] = []

    def broadcast(values: list[Any]) -> None:
        sent.extend(values)
        values[:] = sent[: len(values)]

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    first_steps = []
    for rank, node in enumerate((folder, other)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        where = {"output_dir": str(tmp_path / "next"), "earlier_attempts": (str(node),)}
        trial = killed_trial.model_copy(update=where)
        first_steps.append(Checkpoints(trial, ListReporter(), None).first_step)
    assert first_steps == [5, 5]


def test_checkpoint_holds_no_pickle(killed: tuple[Path, list[Path]]) -> None:
    _, checkpoints = killed
    names = {file.name for folder in checkpoints for file in folder.iterdir()}
    assert {name.rsplit(".", 1)[1] for name in names} == {"safetensors", "json"}


def test_what_is_reported_lies_in_a_checkpoint(
    make_trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where writing takes longer than evaluating."""
    evaluated = Event()
    write, evaluate = checkpoint.write, Measuring._evaluate

    def write_after_the_evaluation(*arguments: Any) -> None:
        assert evaluated.wait(60)
        write(*arguments)

    def tell(measuring: Measuring, step: int) -> dict[str, float]:
        metrics = evaluate(measuring, step)
        evaluated.set()
        return metrics

    class Looking(ListReporter):
        def report(self, measurement: Measurement) -> None:
            super().report(measurement)
            if IN_DOMAIN_ACC in measurement.metrics:
                newest = newest_valid(trial.attempt_dirs)
                found.append((measurement.step, newest and newest.name))

    found: list[tuple[int, str | None]] = []
    monkeypatch.setattr(checkpoint, "write", write_after_the_evaluation)
    monkeypatch.setattr(Measuring, "_evaluate", tell)
    trial = make_trial(train=TRAIN)
    train(trial, Looking())
    assert found == [(step, f"step_{step:08d}") for step in (5, 10, 12)]
