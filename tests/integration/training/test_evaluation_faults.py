"""Evaluations that fail, and the weights at the best evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from chosen_scores import OBJECTIVE, scores
from faults import faults
from measured import by_step
from safetensors.torch import load_file
from trained_trials import KINDS, TRAIN, measured, train

from trainables.errors import EvaluationFailed
from trainables.evaluation.evaluator import Evaluator
from trainables.records.schema import BASE_RECORD, BaseRecord
from trainables.training.checkpoint_files import best_weights, evaluated, newest_valid
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


def test_a_trial_is_asked_the_rows_that_the_base_was_asked(
    make_trial: MakeTrial, tmp_path: Path
) -> None:
    """A data set on a hub may change; items would lack their partners after the training."""
    config = make_trial(train=TRAIN)
    base = shutil.copytree(config.base_dir, tmp_path / "base")
    record = BaseRecord.model_validate_json((base / BASE_RECORD).read_bytes())
    label = next(label for label, score in record.scores.items() if score.role == "in_domain")
    rows = record.rows | {label: dict.fromkeys(record.rows[label], "of other rows")}
    other = record.model_copy(update={"rows": rows})
    (base / BASE_RECORD).write_text(other.model_dump_json())
    reporter = ListReporter()
    (fault,) = faults(train, config.model_copy(update={"base_dir": str(base)}), reporter)
    assert fault.field == "eval.in_domain"
    assert label in fault.rule
    assert not reporter.measurements


@pytest.mark.parametrize(
    ("kind", "step"),
    [("lora", 9), pytest.param("full, stage 3, bfloat16", 6, marks=pytest.mark.slow)],
)
def test_a_failed_evaluation_keeps_the_training_and_is_done_first_on_resume(
    make_trial: MakeTrial,
    undisturbed: Callable[[str], tuple[TrialConfig, Run]],
    kind: str,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_best_weights_are_kept_beside_the_last(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {3: 0.2, 6: 0.5, 9: 0.4})
    trial = make_trial(train=TRAIN, objective=OBJECTIVE)
    result = train(trial, ListReporter())
    assert result.best_weights_dir == str(Path(trial.output_dir) / "best")
    ((_, best),) = best_weights(trial.attempt_dirs)
    assert (best.step, best.value) == (6, 0.5)
    saved = load_file(Path(result.best_weights_dir, "adapter_model.safetensors"))
    state = load_file(Path(trial.output_dir, "checkpoints/step_00000006/training.safetensors"))
    for name, tensor in saved.items():
        assert torch.equal(tensor, state[f"parameter/{name.replace('.weight', '.default.weight')}"])
    assert peft.AutoPeftModelForCausalLM.from_pretrained(result.best_weights_dir) is not None
