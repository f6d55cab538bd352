"""A trial that resumes from a checkpoint measures what an undisturbed one does, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from measured import by_step
from safetensors.torch import load_file
from trained_trials import KINDS, TRAIN, measured, train

from trainables.metric_keys import IN_DOMAIN_ACC, TRAIN_LOSS, TRAIN_SECONDS
from trainables.models.model_shape import read_shape
from trainables.process.memory_estimate import disk_estimate
from trainables.training import checkpoint
from trainables.training.checkpoint_files import CheckpointLost, newest_valid
from trainables.training.checkpointing import Checkpoints
from trainables.training.measuring import Measuring
from trainables.training.reporter import ListReporter
from trainables.workers.trial_outcome import verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement

    MakeTrial = Callable[..., TrialConfig]
    Undisturbed = Callable[[str], tuple[TrialConfig, Run]]

KILLED_AT = 8  # between two checkpoints, of steps 6 and 9
FAST = ("lora", "full, stage 3, bfloat16")


class Killed(Exception):
    pass


class Killer(ListReporter):
    def report(self, measurement: Measurement) -> None:
        super().report(measurement)
        if measurement.step == KILLED_AT:
            raise Killed


def killed_trial(make_trial: MakeTrial, parts: dict[str, Any]) -> tuple[TrialConfig, Killer]:
    trial, reporter = make_trial(**parts, train=TRAIN), Killer()
    with pytest.raises(Killed):
        train(trial, reporter)
    return trial, reporter


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in FAST else pytest.mark.slow) for k in KINDS]
)
def test_killed_and_resumed_equals_undisturbed(
    make_trial: MakeTrial, undisturbed: Undisturbed, kind: str
) -> None:
    expected = by_step(undisturbed(kind)[1].measurements)
    first, reporter = killed_trial(make_trial, KINDS[kind])
    second = make_trial(**KINDS[kind], train=TRAIN, earlier_attempts=(first.output_dir,))
    resumed = measured(second)
    assert [m.step for m in resumed] == [7, 8, 9]
    assert by_step(resumed) == {step: expected[step] for step in (7, 8, 9)}
    (before,) = (m.metrics[TRAIN_SECONDS] for m in reporter.measurements if m.step == 6)
    assert resumed[0].metrics[TRAIN_SECONDS] > before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "full, stage 0", {"zero_stage": 3, "offload_optimizer": True}, marks=pytest.mark.slow
        ),
        ("full, stage 2, bfloat16", {"zero_stage": 3, "offload_parameters": True}),
    ],
)
def test_a_trial_resumes_under_other_memory_settings(
    make_trial: MakeTrial, undisturbed: Undisturbed, before: str, after: dict[str, Any]
) -> None:
    whole, run = undisturbed(before)
    expected = by_step(run.measurements)
    earlier = Path(make_trial().output_dir)
    name = "checkpoints/step_00000006"
    shutil.copytree(Path(whole.output_dir) / name, earlier / name)
    parts = KINDS[before] | {"deepspeed": after}
    resumed = by_step(measured(make_trial(**parts, train=TRAIN, earlier_attempts=(str(earlier),))))
    assert min(resumed) == 7
    for step, metrics in resumed.items():
        assert metrics[TRAIN_LOSS] == pytest.approx(expected[step][TRAIN_LOSS], abs=1e-3)


@pytest.mark.parametrize("kind", FAST)
def test_the_disk_space_is_what_was_estimated(undisturbed: Undisturbed, kind: str) -> None:
    trial, _ = undisturbed(kind)
    shape = read_shape(trial.model)
    assert shape is not None
    estimate = disk_estimate(shape, trial)
    assert sizes(Path(trial.weights_dir)) == pytest.approx([estimate.weights], rel=0.07)
    checkpoints = sorted(Path(trial.output_dir).glob("checkpoints/step_*"))
    assert [path.name for path in checkpoints] == ["step_00000006", "step_00000009"]
    for folder in checkpoints:
        assert sizes(folder, "training*") == pytest.approx([estimate.checkpoint], rel=0.07)
        assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}  # no pickle


def sizes(folder: Path, files: str = "*.safetensors") -> list[int]:
    return [file.stat().st_size for file in folder.glob(files)]


@pytest.mark.parametrize("kind", FAST)
def test_a_trial_lost_after_its_last_step_trains_nothing_again(
    make_trial: MakeTrial, undisturbed: Undisturbed, kind: str, tmp_path: Path
) -> None:
    trial, run = undisturbed(kind)
    first = shutil.copytree(trial.output_dir, tmp_path / "attempt_1")
    second = make_trial(**KINDS[kind], train=TRAIN, earlier_attempts=(str(first),))
    assert by_step(measured(second)) == {9: by_step(run.measurements)[9]}
    before, after = (
        load_file(next(Path(t.weights_dir).glob("*.safetensors"))) for t in (trial, second)
    )
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.fixture
def next_attempt(undisturbed: Undisturbed, tmp_path: Path) -> tuple[TrialConfig, Path, Path]:
    """An attempt after one that got to step 9, and this one's older and newer checkpoint."""
    trial, _ = undisturbed("lora")
    folder = shutil.copytree(trial.output_dir, tmp_path / "attempt_1")
    changes = {"earlier_attempts": (str(folder),), "output_dir": str(tmp_path / "attempt_2")}
    older, newer = sorted(folder.glob("checkpoints/step_*"))
    return trial.model_copy(update=changes), older, newer


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    next_attempt: tuple[TrialConfig, Path, Path], undisturbed: Undisturbed
) -> None:
    """That one is read before anything is reported: an attempt that lives on may delete it."""
    trial, older, newer = next_attempt
    content = bytearray((newer / "training.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newer / "training.safetensors").write_bytes(content)
    (older / "evaluated.json").unlink()

    class Deleting(ListReporter):
        def report(self, measurement: Measurement) -> None:
            super().report(measurement)
            shutil.rmtree(older, ignore_errors=True)

    reporter = Deleting()
    train(trial, reporter)
    expected = by_step(undisturbed("lora")[1].measurements)
    assert by_step(reporter.measurements) == {step: expected[step] for step in (6, 7, 8, 9)}
    assert (newer.parent / f"damaged_{newer.name}").exists()


def test_a_checkpoint_deleted_before_it_is_read_is_lost(
    next_attempt: tuple[TrialConfig, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the attempt that wrote it, or by the disk budget, while the model is loaded."""
    trial, _, newer = next_attempt
    late, start = newer.with_name("step_00000011"), Checkpoints.start

    def start_late(*arguments: Any) -> None:
        shutil.copytree(newer, late)
        start(*arguments)
        (newer / "training.safetensors").unlink()

    monkeypatch.setattr(Checkpoints, "start", start_late)
    reporter = ListReporter()
    with pytest.raises(CheckpointLost, match="step_00000009") as caught:
        train(trial, reporter)
    assert not reporter.measurements
    with pytest.raises(CheckpointLost):  # so Ray starts the next attempt
        verdict(trial, caught.value)
    assert late.exists()  # for the next attempt


def test_what_is_reported_is_in_a_checkpoint(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where writing takes longer than evaluating."""
    evaluated = Event()
    write, evaluate = checkpoint.write, Measuring._evaluate

    def write_after_the_evaluation(*arguments: Any) -> None:
        assert evaluated.wait(60)
        write(*arguments)

    def evaluate_first(measuring: Measuring, step: int) -> dict[str, float]:
        metrics = evaluate(measuring, step)
        evaluated.set()
        return metrics

    class Looking(ListReporter):
        def report(self, measurement: Measurement) -> None:
            super().report(measurement)
            newest = newest_valid(trial.attempt_dirs)
            found.append((IN_DOMAIN_ACC in measurement.metrics, newest and newest.name))

    found: list[tuple[bool, str | None]] = []
    monkeypatch.setattr(checkpoint, "write", write_after_the_evaluation)
    monkeypatch.setattr(Measuring, "_evaluate", evaluate_first)
    trial = make_trial(train=TRAIN | {"steps": 1, "report_every": 1, "warmup": 0})
    train(trial, Looking())
    assert found == [(True, "step_00000001")]
