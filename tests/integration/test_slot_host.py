"""A host of slots by itself: who waits, who leaves, and what happens where memory is short."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainables.errors import OutOfMemory
from trainables.lora import train_lora
from trainables.reporter import ListReporter, StopTrial
from trainables.slots.engine import SlotEngine
from trainables.slots.host import ERROR, MEASUREMENT, RESULT, STARTED, UNKNOWN, SlotHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]

pytestmark = pytest.mark.integration


async def follow(host: SlotHost, trial_id: str) -> list[dict[str, Any]]:
    """All events of a trial."""
    events = [await host.next_event(trial_id)]
    while not {RESULT, ERROR} & events[-1].keys():
        events.append(await host.next_event(trial_id))
    return events


def host_trials(
    trials: list[TrialConfig], slots: int, host: SlotHost | None = None
) -> list[list[dict[str, Any]]]:
    """Let a host train them, all asked for at once."""

    async def run() -> list[list[dict[str, Any]]]:
        serving = host or SlotHost()
        for trial in trials:
            await serving.join(trial.model_dump(mode="json"), slots)
        return await asyncio.gather(*(follow(serving, trial.trial_id) for trial in trials))

    return asyncio.run(run())


def test_a_host_whose_slots_are_taken_says_so(make_trial: MakeTrial) -> None:
    trials = [make_trial(trial_id=str(number)).model_dump(mode="json") for number in range(3)]

    async def run() -> tuple[list[bool], bool, dict[str, Any]]:
        host = SlotHost()
        taken = [await host.join(trial, 2, may_wait=False) for trial in trials]
        not_here = await host.next_event("2")
        await host.leave("0")
        again = await host.join(trials[2], 2, may_wait=False)
        for trial_id in ("1", "2"):
            assert RESULT in (await follow(host, trial_id))[-1]
        return taken, again, not_here

    assert asyncio.run(run()) == ([True, True, False], True, {UNKNOWN: True})


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [e[MEASUREMENT]["metrics"]["train/loss"] for e in events if MEASUREMENT in e]


def losses_alone(trial: TrialConfig) -> list[float]:
    reporter = ListReporter()
    train_lora(trial, reporter)
    return [m.metrics["train/loss"] for m in reporter.measurements]


def test_a_trial_without_a_free_slot_waits_for_the_next(make_trial: MakeTrial) -> None:
    trials = [make_trial(trial_id=str(number), learning_rate=10**-number) for number in (2, 3, 4)]
    for trial, events in zip(trials, host_trials(trials, slots=2), strict=True):
        assert STARTED in events[0]
        assert RESULT in events[-1]
        assert losses(events) == pytest.approx(
            losses_alone(make_trial(learning_rate=trial.learning_rate)), abs=1e-4
        )


def test_a_trial_that_leaves_frees_its_slot(make_trial: MakeTrial) -> None:
    endless = make_trial(trial_id="endless", train={"steps": 10_000, "report_every": 10_000})
    short = make_trial(trial_id="short")

    async def run() -> list[dict[str, Any]]:
        host = SlotHost()
        await host.join(endless.model_dump(mode="json"), 1)
        await host.next_event("endless")
        await host.join(short.model_dump(mode="json"), 1)
        await host.next_event("endless")  # it has measured something
        await host.leave("endless")
        return await follow(host, "short")

    assert RESULT in asyncio.run(run())[-1]


@pytest.mark.parametrize(("rows_that_fit", "ends_well"), [(2, True), (0, False)])
def test_where_memory_is_short_micro_batches_are_halved(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, rows_that_fit: int, ends_well: bool
) -> None:
    """A device that holds so many sequences at a time."""
    whole_pass = SlotEngine._pass

    def limited(engine: SlotEngine, slots: Any, parts: Any) -> list[float]:
        if sum(slot.adapter.rows for slot in slots) > rows_that_fit:
            raise torch.OutOfMemoryError("no more")
        return whole_pass(engine, slots, parts)

    monkeypatch.setattr(SlotEngine, "_pass", limited)
    trials = [make_trial(trial_id=str(number), seed=number) for number in range(2)]
    for trial, events in zip(trials, host_trials(trials, slots=2), strict=True):
        if ends_well:
            monkeypatch.setattr(SlotEngine, "_pass", whole_pass)
            expected = losses_alone(make_trial(seed=trial.seed))
            assert losses(events)[-10:] == pytest.approx(expected, abs=1e-4)
        else:
            assert isinstance(events[-1][ERROR], OutOfMemory)


@pytest.mark.parametrize("report_every", [12, 1])
def test_a_stop_request_saves_a_checkpoint_and_ends_every_trial(
    make_trial: MakeTrial, report_every: int
) -> None:
    train = {"steps": 12, "report_every": report_every}
    first = make_trial(train=train)
    (events,) = host_trials([first], 1, SlotHost(stop_requested=lambda: True))
    assert isinstance(events[-1][ERROR], StopTrial)
    reporter = ListReporter()
    train_lora(make_trial(train=train, earlier_attempts=(first.output_dir,)), reporter)
    assert reporter.measurements[0].step == 2
    expected = losses_alone(make_trial(train=train))
    assert losses(events) + [
        m.metrics["train/loss"] for m in reporter.measurements
    ] == pytest.approx(expected, abs=1e-4)
