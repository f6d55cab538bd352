"""Trials that train in slots of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainables.packing.engine import Ended, SlotEngine
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement


def engine_for(trial: TrialConfig, recomputes: bool = False) -> SlotEngine:
    """An engine for trials of this one's base and layers."""
    train = trial.train.model_copy(update={"gradient_checkpointing": recomputes})
    return SlotEngine(trial.model_copy(update={"train": train}))


@contextmanager
def slots_for(trial: TrialConfig, recomputes: bool = False) -> Iterator[SlotEngine]:
    """`engine_for` a trial; the base is given back in the end."""
    engine = engine_for(trial, recomputes)
    try:
        yield engine
    finally:
        engine.close()


def drain(engine: SlotEngine) -> list[Ended]:
    """Step until no slot is busy."""
    ended: list[Ended] = []
    while engine.slots:
        ended += engine.step()
    return ended


def measured_in_slots(*trials: TrialConfig, recomputes: bool = False) -> list[list[Measurement]]:
    """What trials measure that train side by side, to their ends."""
    reporters = [ListReporter() for _ in trials]
    with slots_for(trials[0], recomputes) as engine:
        for trial, reporter in zip(trials, reporters, strict=True):
            engine.join(trial, reporter)
        ended = drain(engine)
    assert [each.error for each in ended] == [None] * len(trials)
    return [reporter.measurements for reporter in reporters]
