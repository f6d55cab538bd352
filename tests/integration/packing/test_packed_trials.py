"""Packed trials measure what each measures alone, whatever their neighbours do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from in_slots import drain, engine_for, measured_in_slots, slots_for
from measured import TOLERANCE, assert_measured, of_the_training
from safetensors.torch import load_file

from trainables.errors import Diverged
from trainables.evaluation.evaluator import Evaluator
from trainables.losses import LOSSES
from trainables.losses.dft import Dft
from trainables.models.loading import load_model, shared_base
from trainables.training.adapter_sft import train_adapter
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.packing.engine import SlotEngine
    from trainables.packing.passes import Share
    from trainables.records.schema import Measurement

    MakeTrial = Callable[..., TrialConfig]


SHORT = {"steps": 6, "report_every": 6}
PLUS = {"method": "loraplus", "loraplus": {"rank": 4, "alpha": 8.0}}
TRIALS: dict[str, dict[str, Any]] = {
    "plain": {"train": SHORT, "strengths": (0.2, 0.6)},
    "same rank, other alpha": {"train": SHORT, "lora": {"alpha": 16.0}, "learning_rate": 3e-3},
    "rank 64, rsLoRA, accumulated": {
        "lora": {"rank": 64, "rslora": True},
        "train": SHORT | {"batch_size": 8, "micro_batch_size": 2},
    },
    "schedule, decay": {
        "lora": {"rank": 1},
        "train": {"steps": 9, "report_every": 9, "batch_size": 16}
        | {"schedule": "cosine", "warmup": 0.3, "weight_decay": 0.1},
    },
    "unclipped": {"train": SHORT | {"max_grad_norm": 0.0}, "learning_rate": 2e-3, "seed": 1},
    "LoRA+": {
        **PLUS,
        "strengths": (0.4,),
        "train": SHORT | {"schedule": "cosine", "warmup": 0.3, "weight_decay": 0.1},
    },
    "PiSSA, half of it frozen": {
        "method": "pissa",
        "pissa": {"rank": 2, "alpha": 4.0},
        "strengths": (0.4,),
        "train": SHORT | {"weight_decay": 0.1},
    },
    "EVA, from its samples": {"method": "eva", "eva": {"rank": 4, "alpha": 8.0}, "train": SHORT},
    "LoRA-GA, from gradients": {
        "method": "loraga",
        "loraga": {"rank": 4, "alpha": 8.0},
        "train": SHORT,
    },
    "weighted tokens, accumulated": {
        "loss": Dft(),
        "train": SHORT | {"batch_size": 8, "micro_batch_size": 2},
    },
    "plain text": {"train": SHORT, "data": {"text": "prompt"}},
}


class Killed(Exception):
    pass


class DyingReporter(ListReporter):
    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def report(self, measurement: Measurement) -> None:
        super().report(measurement)
        if measurement.step == self._step:
            raise Killed


def alone(trial: TrialConfig) -> list[Measurement]:
    reporter = ListReporter()
    train_adapter(trial, reporter)
    return reporter.measurements


def test_packed_is_alone(make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials join pass by pass; neighbours diverge, die and leave; memory runs out once."""
    apart = {name: make_trial(**changes) for name, changes in TRIALS.items()}
    references = {name: alone(trial) for name, trial in apart.items()}
    losses = {measured[-1].metrics["train/loss"] for measured in references.values()}
    assert len(losses) == len(TRIALS)
    reporters = {name: ListReporter() for name in TRIALS}
    trials = {name: make_trial(**changes) for name, changes in TRIALS.items()}
    ended = []
    with slots_for(trials["plain"]) as engine:
        diverging = engine.join(make_trial(learning_rate=1e30), ListReporter())
        dying = engine.join(make_trial(seed=2), DyingReporter(step=2))
        poisoned = engine.join(make_trial(seed=3, lora={"rank": 64}), ListReporter())
        poisoned.adapter.flat_P.data += float("nan")
        unfinished = {"steps": 100, "report_every": 100}
        leaving = engine.join(make_trial(lora={"rank": 1}, train=unfinished), ListReporter())
        run_out_of_memory_in_pass(6, engine, monkeypatch)
        for name, trial in trials.items():
            engine.join(trial, reporters[name])
            ended += engine.step()
        engine.leave(leaving)
        ended += drain(engine)
    errors = {type(end.error) for end in ended if end.slot in (diverging, poisoned)}
    assert errors == {Diverged}
    assert [type(end.error) for end in ended if end.slot is dying] == [Killed]
    assert sum(end.error is None for end in ended) == len(TRIALS)
    for name, reporter in reporters.items():
        assert_measured(reporter.measurements, references[name])
        assert_saved_alike(trials[name], apart[name])


def test_trials_of_all_losses_in_one_pass_are_alone(make_trial: MakeTrial) -> None:
    train = SHORT | {"batch_size": 8, "micro_batch_size": 2}
    losses = [loss() for loss in LOSSES if not loss.reads_base_weights]
    references = [alone(make_trial(train=train, loss=loss)) for loss in losses]
    reporters = [ListReporter() for _ in losses]
    trials = [make_trial(train=train, loss=loss) for loss in losses]
    with slots_for(trials[0]) as engine:
        for trial, reporter in zip(trials, reporters, strict=True):
            engine.join(trial, reporter)
        drain(engine)
    for reporter, reference in zip(reporters, references, strict=True):
        assert_measured(reporter.measurements, reference)


def run_out_of_memory_in_pass(
    number: int, engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_pass, passes = engine._pass, []

    def limited(shares: list[Share]) -> list[float]:
        passes.append(len(shares))
        if len(passes) == number:
            shares[0].slot.adapter.flat_P.grad += 1  # as a backward pass leaves that breaks off
            raise torch.OutOfMemoryError
        return whole_pass(shares)

    monkeypatch.setattr(engine, "_pass", limited)


def test_dropout_is_the_same_where_activations_are_recomputed(make_trial: MakeTrial) -> None:
    def gradients(recomputes: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        rates = (0.2, 0.5, 0.0)
        train = {"batch_size": 8, "micro_batch_size": 2}
        trials = [make_trial(seed=n, lora={"dropout": p}, train=train) for n, p in enumerate(rates)]
        with slots_for(trials[0], recomputes) as engine:
            slots = [engine.join(trial, ListReporter()) for trial in trials]
            for slot in slots:  # B is zero at first, and with it the gradient of A
                slot.adapter.flat_P.data += 0.05 * torch.randn(slot.adapter.flat_P.shape)
            engine.step()
            engine.step()
            return [slot.adapter.flat_P.grad.clone() for slot in slots]

    for recomputed, kept in zip(gradients(True), gradients(False), strict=True):
        assert kept.abs().max() > 0
        torch.testing.assert_close(recomputed, kept, rtol=1e-5, atol=1e-6)


def assert_saved_alike(packed: TrialConfig, reference: TrialConfig) -> None:
    ours, theirs = (
        json.loads(Path(trial.weights_dir, "adapter_config.json").read_text())
        for trial in (packed, reference)
    )
    for config in (ours, theirs):
        config["target_modules"].sort()
    assert ours == theirs
    ours, theirs = (
        load_file(Path(trial.weights_dir, "adapter_model.safetensors"))
        for trial in (packed, reference)
    )
    assert list(ours) == list(theirs)
    assert all(torch.allclose(ours[name], theirs[name], atol=TOLERANCE) for name in ours)


def in_slot(trial: TrialConfig, reporter: ListReporter) -> None:
    with slots_for(trial) as engine:
        engine.join(trial, reporter)
        changes = {"seed": 5, "earlier_attempts": (), "output_dir": f"{trial.output_dir}_neighbour"}
        engine.join(trial.model_copy(update=changes), ListReporter())
        (error,) = (e.error for e in drain(engine) if e.slot.trial.seed == trial.seed)
    if error:
        raise error


RESUMED = {**PLUS, "train": {"steps": 6, "report_every": 3, "schedule": "cosine"}}


@pytest.fixture(scope="module")
def undisturbed(make_trial: MakeTrial) -> dict[int, Measurement]:
    return {m.step: m for m in alone(make_trial(**RESUMED))}


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(in_slot, in_slot, marks=pytest.mark.slow), (in_slot, train_adapter)],
    ids=["packed to packed", "packed to alone"],
)
def test_a_killed_trial_resumes_packed_or_alone(
    make_trial: MakeTrial, before: Any, after: Any, undisturbed: dict[int, Measurement]
) -> None:
    first = make_trial(**RESUMED)
    with pytest.raises(Killed):
        before(first, DyingReporter(step=5))
    reporter = ListReporter()
    after(make_trial(**RESUMED, earlier_attempts=(first.output_dir,)), reporter)
    assert reporter.measurements[0].step == 4  # the step after the checkpoint
    assert_measured(reporter.measurements, [undisturbed[m.step] for m in reporter.measurements])


def test_trials_evaluated_together_score_what_each_scores_alone(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rows of one item each, of which a pass bears several, once requests have been seen."""
    together: list[int] = []
    answer_ahead = Evaluator.answer_ahead

    def spy(evaluator: Evaluator, models: Any, routed: Any) -> None:
        together.append(len(models))
        answer_ahead(evaluator, models, routed)

    monkeypatch.setattr(Evaluator, "answer_ahead", spy)
    changes = {"learning_rate": 3e-3, "train": {"steps": 2, "report_every": 1}}
    loras = [{"rank": 4}, {"rank": 8}]
    started = time.perf_counter()
    packed = measured_in_slots(
        *(make_trial(lora=lora, eval={"batch_size": 1}, **changes) for lora in loras)
    )
    taken = time.perf_counter() - started
    assert together == [2]
    for lora, measured in zip(loras, packed, strict=True):
        expected = of_the_training(alone(make_trial(lora=lora, **changes))[-1].metrics)
        found = of_the_training(measured[-1].metrics)
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-4)
    # Time that several share is divided between them.
    spent = [m[-1].metrics[key] for m in packed for key in ("time/train_s", "time/eval_s")]
    assert 0 < min(spent) < sum(spent) < 1.1 * taken


def test_without_the_memory_for_shared_passes_each_is_evaluated_by_itself(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Evaluator, "answer_ahead", failing)
    train = {"steps": 1, "report_every": 1}
    for measured in measured_in_slots(*(make_trial(seed=n, train=train) for n in range(2))):
        assert "in_domain/acc_mean" in measured[-1].metrics


def test_the_base_is_given_back_as_it_was(make_trial: MakeTrial) -> None:
    trial = make_trial()
    base = shared_base(trial.model)
    engine = engine_for(trial)
    engine.join(trial, ListReporter())
    engine.step()
    engine.close()
    fresh = load_model(trial.model).to(base.device)
    assert all(torch.equal(base.state_dict()[k], v) for k, v in fresh.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in base.parameters())
    assert base.training == fresh.training
    assert not any("forward" in vars(module) for module in base.modules())
