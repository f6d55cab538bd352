"""A trial that resumes from a checkpoint measures what an undisturbed one does, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from chosen_scores import OBJECTIVE, scores
from measured import by_step
from safetensors.torch import load_file
from trained_trials import KINDS, TRAIN, measured, train

from trainables.errors import EvaluationFailed
from trainables.evaluation.evaluator import Evaluator
from trainables.metric_keys import IN_DOMAIN_ACC, TRAIN_LOSS, TRAIN_SECONDS
from trainables.models.model_shape import read_shape
from trainables.process.memory_estimate import disk_estimate
from trainables.storage.locations import node_cache
from trainables.storage.storage import open_storage
from trainables.training.attempt_folder import on_this_node, publish_rest
from trainables.training.checkpoint_files import (
    best_weights,
    evaluated,
    newest_valid,
)
from trainables.training.reporter import ListReporter, StopTrial

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_trials import Run

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


@pytest.mark.slow
def test_a_trial_resumes_under_other_memory_settings(
    make_trial: MakeTrial, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    kind, name = "full, stage 2, bfloat16", "checkpoints/step_00000006"
    whole, run = undisturbed(kind)
    shutil.copytree(Path(whole.output_dir) / name, tmp_path / name)
    parts = KINDS[kind] | {"deepspeed": {"zero_stage": 3, "offload_parameters": True}}
    trial = make_trial(**parts, train=TRAIN, earlier_attempts=(str(tmp_path),))
    expected, resumed = by_step(run.measurements), by_step(measured(trial))
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


def test_a_trial_lost_after_its_last_step_trains_nothing_again(
    make_trial: MakeTrial, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    trial, run = undisturbed("lora")
    first = shutil.copytree(trial.output_dir, tmp_path / "attempt_1")
    second = make_trial(**KINDS["lora"], train=TRAIN, earlier_attempts=(str(first),))
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


class Stopping(ListReporter):
    """Asks the trial to stop after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def stop_requested(self) -> bool:
        return self.measurements[-1].step == self._step


def test_stopped_and_resumed_elsewhere_equals_undisturbed(
    make_trial: MakeTrial,
    undisturbed: Undisturbed,
    bucket: str,
    base_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best weights are the first attempt's; no step is evaluated twice."""
    expected = by_step(undisturbed("lora")[1].measurements)
    sweep = f"{bucket}/{tmp_path.name}"
    open_storage(sweep).publish(base_dir, "base", last="base.json")
    first, second = (f"{sweep}/trials/0000/attempt_{number}" for number in (1, 2))

    def attempt(address: str, *earlier: str) -> TrialConfig:
        shutil.rmtree(node_cache() / "attempts", ignore_errors=True)  # another node
        places = {"base_dir": f"{sweep}/base", "output_dir": address, "earlier_attempts": earlier}
        return on_this_node(make_trial(**KINDS["lora"], train=TRAIN, objective=OBJECTIVE, **places))

    scores(monkeypatch, {3: 0.9, 6: 0.8, 9: 0.7})
    trial = attempt(first)
    with pytest.raises(StopTrial):
        train(trial, Stopping(4))
    publish_rest(trial)
    trial, reporter = attempt(second, first), ListReporter()
    result = train(trial, reporter)
    publish_rest(trial)
    assert result.best_weights_dir == f"{first}/best"
    assert "adapter_model.safetensors" in open_storage(f"{first}/best").children("")
    resumed = by_step(reporter.measurements)
    assert sorted(resumed) == list(range(5, 10))
    for step, metrics in resumed.items():
        own = {key: value for key, value in expected[step].items() if key != IN_DOMAIN_ACC}
        assert {key: metrics[key] for key in own} == own


def test_a_failed_evaluation_keeps_the_training_and_is_done_first_on_resume(
    make_trial: MakeTrial,
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, step = "lora", 9
    expected = by_step(undisturbed(kind)[1].measurements)
    run, calls = Evaluator._run, []

    def failing(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == step // 3 * len(self._loaded):
            raise ZeroDivisionError("no documents\nand more")
        return run(self, *arguments)

    first, reporter = make_trial(**KINDS[kind], train=TRAIN), ListReporter()
    last_task = first.eval.tasks()[-1][1].label
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_run", failing)
        with pytest.raises(EvaluationFailed) as caught:
            train(first, reporter)
    for fact in (f"step {step}", f"task {last_task}", "ZeroDivisionError: no documents"):
        assert fact in str(caught.value)
    assert "and more" not in str(caught.value)
    assert by_step(reporter.measurements) == {s: expected[s] for s in range(1, step)}
    checkpoint = newest_valid([Path(first.output_dir)])
    assert checkpoint is not None
    assert checkpoint.name == f"step_{step:08d}"
    assert evaluated(checkpoint) is None

    second = make_trial(**KINDS[kind], train=TRAIN, earlier_attempts=(first.output_dir,))
    assert by_step(measured(second)) == {s: expected[s] for s in range(step, 10)}
    assert Path(second.weights_dir).exists()


def test_saved_weights_are_the_trained_ones_of_the_last_and_of_the_best_step(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {3: 0.2, 6: 0.5, 9: 0.4})
    trial = make_trial(train=TRAIN, objective=OBJECTIVE)
    result = train(trial, ListReporter())
    assert result.best_weights_dir == str(Path(trial.output_dir) / "best")
    ((_, best),) = best_weights(trial.attempt_dirs)
    assert (best.step, best.value) == (6, 0.5)
    for step, folder in ((6, result.best_weights_dir), (9, trial.weights_dir)):
        saved = load_file(Path(folder, "adapter_model.safetensors"))
        checkpoint = Path(trial.output_dir, f"checkpoints/step_{step:08d}/training.safetensors")
        state = load_file(checkpoint)
        assert len(saved) == sum(name.startswith("parameter/") for name in state)
        for name, tensor in saved.items():
            trained = state[f"parameter/{name.replace('.weight', '.default.weight')}"]
            assert torch.equal(tensor, trained)
    assert peft.AutoPeftModelForCausalLM.from_pretrained(result.best_weights_dir) is not None
