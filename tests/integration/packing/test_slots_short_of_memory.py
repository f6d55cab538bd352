"""Slots where memory runs out in a trial's own time: what it held is free for its neighbours."""

from __future__ import annotations

import gc
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainables.errors import EvaluationOutOfMemory, traced
from trainables.packing import engine as engine_module
from trainables.packing.engine import SlotEngine
from trainables.packing.passes import Share
from trainables.packing.slot import Slot
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """What evaluations held as memory ran out; none of it may be left as adapters are put anew."""
    held: list[weakref.ref[torch.Tensor]] = []
    whole = engine_module.AdapterGroup

    def checked(*arguments: Any) -> Any:
        assert not any(tensor() is not None for tensor in held)
        return whole(*arguments)

    monkeypatch.setattr(engine_module, "AdapterGroup", checked)
    return held


def evaluation_that_fails(held: list[weakref.ref[torch.Tensor]]) -> Callable[[Slot], None]:
    def pass_of_the_model() -> None:
        logits = torch.zeros(1)
        held.append(weakref.ref(logits))
        raise torch.OutOfMemoryError("no more")

    def fails(slot: Slot) -> None:
        try:
            pass_of_the_model()
        except torch.OutOfMemoryError as error:
            raise EvaluationOutOfMemory("step 1: no more") from error

    return fails


def test_an_evaluation_that_fails_is_forgotten_before_its_slot_is_freed(
    make_trial: MakeTrial,
    engine: SlotEngine,
    held: list[weakref.ref[torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its neighbours' adapters are copied as they move together."""
    failing, other = (engine.join(make_trial(seed=seed), ListReporter()) for seed in range(2))
    report, fails = Slot.report, evaluation_that_fails(held)
    monkeypatch.setattr(
        Slot, "report", lambda slot: fails(slot) if slot is failing else report(slot)
    )
    (ended,) = engine.step()
    assert (ended.slot, type(ended.error)) == (failing, EvaluationOutOfMemory)
    assert len(held) == 1
    assert engine.slots == [other]


def test_so_is_one_that_a_trial_begins_with(
    make_trial: MakeTrial,
    engine: SlotEngine,
    held: list[weakref.ref[torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = engine.join(make_trial(), ListReporter())
    monkeypatch.setattr(Slot, "begin", evaluation_that_fails(held))
    with pytest.raises(EvaluationOutOfMemory):
        engine.join(make_trial(seed=1), ListReporter())
    assert len(held) == 1
    assert engine.slots == [other]


def test_a_trial_that_finds_no_room_leaves_nothing(
    make_trial: MakeTrial, engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it wait for Python to look for cycles, which has no notion of a GPU's memory."""
    adapters: list[weakref.ref[Any]] = []

    def full(members: Any, dtype: torch.dtype) -> None:
        adapters.append(weakref.ref(members[-1]))
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(engine_module, "AdapterGroup", full)
    gc.collect()
    gc.disable()
    try:
        try:
            engine.join(make_trial(), ListReporter())
        except torch.OutOfMemoryError as error:
            traced(error)
        assert [adapter() for adapter in adapters] == [None]
    finally:
        gc.enable()
    assert engine.slots == []


def test_a_pass_that_finds_no_room_is_charged_to_its_slots_alone(
    make_trial: MakeTrial, engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = [engine.join(make_trial(seed=seed), ListReporter()) for seed in range(3)]
    passes = [[Share(slot, slot.micro_batch()) for slot in some] for some in (slots[:2], slots[2:])]
    monkeypatch.setattr(engine, "_plan", lambda _: passes)

    def full(shares: Any) -> None:
        time.sleep(0.5)
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(engine, "_pass", full)
    excluded: dict[Slot, list[float]] = {slot: [] for slot in slots}
    for slot, own in excluded.items():
        monkeypatch.setattr(slot.measuring, "exclude", own.append)
    assert engine.step() == []
    *sharing, waiting = (sum(own) for own in excluded.values())
    assert waiting >= 0.5
    assert sharing == [pytest.approx(waiting / 2, rel=0.1)] * 2
