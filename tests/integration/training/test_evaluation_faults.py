"""An evaluation that crashes: the training before it is kept, and whoever goes on evaluates it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from chosen_scores import OBJECTIVE, scores
from evaluated import evaluated_base
from in_slots import drain, slots_for
from measured import by_step
from safetensors.torch import load_file

from trainables.errors import EvaluationFailed, UserError
from trainables.evaluation.evaluator import Evaluator
from trainables.records.schema import BASE_RECORD, BaseRecord
from trainables.training.checkpoint_files import best_dir, best_weights, evaluated, newest_valid
from trainables.training.full_sft import train_full_sft
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement, TrialResult
    from tune.config.sweep_config import SweepConfig


TRAIN = {"steps": 9, "micro_batch_size": 4, "report_every": 3, "log_every": 1}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"dropout": 0.2}},
    "full, stage 3": {"method": "full", "deepspeed": {"zero_stage": 3}},
}


def train(config: TrialConfig, reporter: ListReporter | None = None) -> list[Measurement]:
    reporter = reporter or ListReporter()
    result_of(config, reporter)
    return reporter.measurements


def result_of(config: TrialConfig, reporter: ListReporter) -> TrialResult:
    return (train_lora if config.method == "lora" else train_full_sft)(config, reporter)


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the task crash in the n-th evaluation of the trial."""

    def crash_at(count: int) -> None:
        run, calls = Evaluator._run, []

        def crashing(self: Any, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == count * len(self._loaded):
                raise ZeroDivisionError("no documents\nand more")
            return run(self, *arguments)

        monkeypatch.setattr(Evaluator, "_run", crashing)

    return crash_at


def test_a_trial_is_asked_what_the_base_was_asked_or_does_not_train(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """A data set of a hub may move, and a task may read a file that the sweep file does not name.

    Of retention alone items would lack their partners, once it had trained.
    """
    config = make_trial(train=TRAIN)
    base = tmp_path / "base"
    shutil.copytree(config.base_dir, base)
    record = BaseRecord.model_validate_json((base / BASE_RECORD).read_bytes())
    label = next(label for label, score in record.scores.items() if score.role == "in_domain")
    rows = record.rows | {label: dict.fromkeys(record.rows[label], "of other rows")}
    other = record.model_copy(update={"rows": rows})
    (base / BASE_RECORD).write_text(other.model_dump_json())
    reporter = ListReporter()
    with pytest.raises(UserError) as caught:
        train(config.model_copy(update={"base_dir": str(base)}), reporter)
    assert str(caught.value).startswith(
        f"eval.in_domain: the rows of task {label} have changed since the base was asked; bring "
    )
    assert not reporter.measurements


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        pytest.param("lora", 6, marks=pytest.mark.slow),
        ("lora", 9),
        ("full, stage 3", 6),
        pytest.param("full, stage 3", 9, marks=pytest.mark.slow),
    ],
)
def test_training_is_kept_and_the_evaluation_made_up_for(
    make_trial: Callable[..., TrialConfig],
    crash_at: Callable[[int], None],
    kind: str,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = by_step(train(make_trial(**KINDS[kind], train=TRAIN)))
    first, reporter = make_trial(**KINDS[kind], train=TRAIN), ListReporter()
    crash_at(step // 3)
    with pytest.raises(EvaluationFailed) as caught:
        train(first, reporter)
    monkeypatch.undo()
    last_task = first.eval.tasks()[-1][1].label
    assert str(caught.value) == (
        f"evaluation failed at step {step}, task {last_task}: ZeroDivisionError: no documents"
    )
    assert by_step(reporter.measurements) == {s: undisturbed[s] for s in range(1, step)}
    checkpoint = newest_valid([Path(first.output_dir)])
    assert checkpoint is not None
    assert checkpoint.name == f"step_{step:08d}"
    assert evaluated(checkpoint) is None

    second = make_trial(**KINDS[kind], train=TRAIN, earlier_attempts=(first.output_dir,))
    resumed = train(second)
    assert [m.step for m in resumed] == list(range(step, 10))
    assert by_step(resumed) == {s: undisturbed[s] for s in range(step, 10)}
    assert Path(second.weights_dir).exists()


@pytest.mark.slow
def test_so_it_is_in_a_slot_whose_adapter_is_rounded_for_products(
    make_trial: Callable[..., TrialConfig],
    sweep_config: SweepConfig,
    base_cache: Path,
    crash_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is evaluated is the checkpoint's, and not the fresh adapter that its slot began with."""
    model = sweep_config.model.model_copy(update={"dtype": "bfloat16"})
    base_dir = evaluated_base(sweep_config, base_cache, model=model)
    changes = {"model": {"dtype": "bfloat16"}, "base_dir": str(base_dir), "train": TRAIN}
    undisturbed = by_step(in_slot(make_trial(**changes))[0])
    first = make_trial(**changes)
    crash_at(2)
    _, error = in_slot(first)
    assert isinstance(error, EvaluationFailed)
    monkeypatch.undo()
    resumed, _ = in_slot(make_trial(**changes, earlier_attempts=(first.output_dir,)))
    assert by_step(resumed) == {step: undisturbed[step] for step in range(6, 10)}


def in_slot(trial: TrialConfig) -> tuple[list[Measurement], Exception | None]:
    """What a trial measures in a slot, and what ended it."""
    reporter = ListReporter()
    with slots_for(trial) as engine:
        engine.join(trial, reporter)
        (ended,) = drain(engine)
    return reporter.measurements, ended.error


def test_best_weights_are_kept_beside_the_last(
    make_trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {3: 0.2, 6: 0.5, 9: 0.4})
    trial = make_trial(train=TRAIN, objective=OBJECTIVE)
    result = result_of(trial, ListReporter())
    assert result.best_weights_dir == str(Path(trial.output_dir) / "best")
    ((_, best_so_far),) = best_weights(trial.attempt_dirs)
    assert (best_so_far.step, best_so_far.value) == (6, 0.5)
    scores(monkeypatch, {6: 0.5})
    shorter = make_trial(train=TRAIN | {"steps": 6, "report_every": 6, "schedule": "constant"})
    result_of(shorter, ListReporter())
    best, expected = (
        load_file(Path(folder, "adapter_model.safetensors"))
        for folder in (result.best_weights_dir, shorter.weights_dir)
    )
    assert best.keys() == expected.keys()
    assert all(torch.equal(best[name], expected[name]) for name in expected)
    assert peft.AutoPeftModelForCausalLM.from_pretrained(result.best_weights_dir) is not None


def test_none_are_kept_where_the_last_are_the_best(
    make_trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {3: 0.2, 6: 0.5, 9: 0.5})
    trial = make_trial(train=TRAIN, objective=OBJECTIVE)
    assert result_of(trial, ListReporter()).best_weights_dir is None
    assert not (Path(trial.output_dir) / "best").exists()


def test_best_weights_of_an_earlier_attempt_count(
    make_trial: Callable[..., TrialConfig],
    crash_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make_trial(train=TRAIN, objective=OBJECTIVE)
    scores(monkeypatch, {3: 0.6})
    crash_at(2)
    with pytest.raises(EvaluationFailed):
        train(first)
    monkeypatch.undo()
    scores(monkeypatch, {6: 0.3, 9: 0.4})
    second = make_trial(train=TRAIN, objective=OBJECTIVE, earlier_attempts=(first.output_dir,))
    result = result_of(second, ListReporter())
    assert result.best_weights_dir == str(Path(first.output_dir) / "best")


@pytest.mark.parametrize(("second_value", "is_kept"), [(0.5, False), (0.7, True)])
def test_where_the_best_weights_are_deleted_worse_ones_do_not_take_their_place(
    make_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
    second_value: float,
    is_kept: bool,
) -> None:
    class Deleting(ListReporter):
        def report(self, measurement: Measurement) -> None:
            super().report(measurement)
            if measurement.step == 4:
                shutil.rmtree(best)

    scores(monkeypatch, {3: 0.6, 6: second_value, 9: 0.4})
    trial = make_trial(train=TRAIN, objective=OBJECTIVE)
    best = best_dir(Path(trial.output_dir))
    result = result_of(trial, Deleting())
    assert result.best_weights_dir == (str(best) if is_kept else None)
    assert best.exists() == is_kept
