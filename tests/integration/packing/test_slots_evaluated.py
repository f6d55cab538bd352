"""Slots that are evaluated at the same step share passes, and score what each scores alone."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from in_slots import slots_for
from measured import of_the_training

from trainables.evaluation.evaluator import Evaluator, shared_evaluator
from trainables.packing import engine as slot_engine
from trainables.packing.engine import SlotEngine
from trainables.process.out_of_memory import is_out_of_memory
from trainables.records.item_records import items_file, read_items
from trainables.training import measuring
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


# Ranks of two groups, one after the other and one apart; the last one diverges.
TRIALS: list[dict[str, Any]] = [
    {"lora": {"rank": 4}, "learning_rate": 3e-3},
    {"lora": {"rank": 8}, "learning_rate": 3e-3},
    {"lora": {"rank": 4, "alpha": 16.0}, "learning_rate": 1e-3},
    {"lora": {"rank": 4}, "learning_rate": 1e-4, "seed": 1},
    {"lora": {"rank": 8}, "learning_rate": 1e30},
]


@pytest.fixture
def trials(make_trial: MakeTrial) -> list[TrialConfig]:
    """Evaluated in rows of one item each, of which a pass bears several."""
    train = {"steps": 6, "report_every": 3}
    return [make_trial(eval={"batch_size": 1}, train=dict(train), **changes) for changes in TRIALS]


@pytest.fixture
def engine(trials: list[TrialConfig]) -> Iterator[SlotEngine]:
    with slots_for(trials[0]) as engine:
        yield engine


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many models each shared evaluation was."""
    seen: list[int] = []
    answer_ahead = Evaluator.answer_ahead

    def spy(evaluator: Evaluator, models: Any, routed: Any) -> None:
        seen.append(len(models))
        answer_ahead(evaluator, models, routed)

    monkeypatch.setattr(Evaluator, "answer_ahead", spy)
    return seen


def finals(reporter: ListReporter) -> dict[str, float]:
    (*_, last) = reporter.measurements
    return of_the_training(last.metrics)


def test_they_score_what_each_scores_alone(
    trials: list[TrialConfig], engine: SlotEngine, shared: list[int], make_trial: MakeTrial
) -> None:
    # The first evaluation lays the requests out, one slot after another.
    shared_evaluator.cache_clear()
    together = [ListReporter() for _ in trials]
    started = time.perf_counter()
    for trial, reporter in zip(trials, together, strict=True):
        engine.join(trial, reporter)
    ended = []
    while engine.slots:
        ended += engine.step()
    taken = time.perf_counter() - started
    assert shared
    assert set(shared) == {4}
    assert sum(end.error is not None for end in ended) == 1
    for trial, reporter in zip(trials[:4], together, strict=False):
        alone, folder = ListReporter(), make_trial().output_dir
        train_lora(trial.model_copy(update={"output_dir": folder}), alone)
        assert finals(reporter) == pytest.approx(finals(alone), rel=2e-3, abs=1e-4)
        items = [read_items(items_file(Path(where), 6)) for where in (trial.output_dir, folder)]
        assert items[0] == items[1]
    spent = [
        reporter.measurements[-1].metrics[key]
        for reporter in together[:4]
        for key in ("time/train_s", "time/eval_s")
    ]
    assert min(spent) > 0
    # Time that several shared is shared out; unshared it would be over twice as much.
    assert 0.5 * taken < sum(spent) < 1.1 * taken


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), ZeroDivisionError()])
def test_without_the_memory_for_shared_passes_each_is_evaluated_by_itself(
    trials: list[TrialConfig],
    engine: SlotEngine,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Any other error is none that fewer models could cure."""

    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Evaluator, "answer_ahead", failing)
    together = [ListReporter() for _ in trials[:2]]
    for trial, reporter in zip(trials, together, strict=False):
        engine.join(trial, reporter)
    with nullcontext() if is_out_of_memory(error) else pytest.raises(type(error)):
        assert [end.error for _ in range(6) for end in engine.step()] == [None, None]
        assert all("in_domain/acc_mean" in finals(reporter) for reporter in together)


class Clock:
    """Goes on by next to nothing whenever it is read."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-4
        return self.now

    time = perf_counter


def test_time_in_which_slots_are_evaluated_together_is_of_their_evaluations(
    trials: list[TrialConfig], engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, answer_ahead, calls = Clock(), Evaluator.answer_ahead, []

    def in_eight_seconds(evaluator: Evaluator, models: Any, routed: Any) -> None:
        calls.append(len(models))
        clock.now += 8
        answer_ahead(evaluator, models, routed)

    monkeypatch.setattr(Evaluator, "answer_ahead", in_eight_seconds)
    for module in (measuring, slot_engine):
        monkeypatch.setattr(module, "time", clock)
    together = [ListReporter() for _ in trials[:4]]
    for trial, reporter in zip(trials[:4], together, strict=True):
        engine.join(trial, reporter)
    while engine.slots:
        engine.step()
    assert set(calls) == {4}
    for reporter in together:
        last = reporter.measurements[-1].metrics
        assert last["time/eval_s"] == pytest.approx(8 / 4 * len(calls), rel=0.1)
        assert last["time/train_s"] < 0.1
