"""A host of slots by itself: who waits, who leaves, and what happens where memory is short."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from measured import assert_measured

from trainables.config import Objective
from trainables.packing import engine as engine_module
from trainables.packing.engine import SlotEngine
from trainables.packing.host import ERROR, MEASUREMENT, RESULT, UNKNOWN, SlotHost
from trainables.storage.storage import open_storage
from trainables.training.adapter_sft import train_adapter
from trainables.training.checkpoint_files import checkpoint_dir, evaluated
from trainables.training.reporter import ListReporter, StopTrial

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.packing.passes import Share
    from trainables.packing.slot import Slot
    from trainables.records.schema import Measurement

    MakeTrial = Callable[..., TrialConfig]

QUICK = {"steps": 2, "report_every": 2}
ENDLESS = {"steps": 10_000, "report_every": 10_000}


async def follow(host: SlotHost, trial_id: str) -> list[dict[str, Any]]:
    """All events of a trial."""
    events = [await host.next_event(trial_id)]
    while not {RESULT, ERROR, UNKNOWN} & events[-1].keys():
        events.append(await host.next_event(trial_id))
    return events


def host_trials(
    trials: list[TrialConfig], slots: int, host: SlotHost | None = None
) -> list[list[dict[str, Any]]]:
    """Let a host train them, all asked for at once."""

    async def run() -> list[list[dict[str, Any]]]:
        serving = host or SlotHost()
        for trial in trials:
            await serving.join(trial, slots)
        return await asyncio.gather(*(follow(serving, trial.trial_id) for trial in trials))

    return asyncio.run(run())


def measured(events: list[dict[str, Any]]) -> list[Measurement]:
    return [event[MEASUREMENT] for event in events if MEASUREMENT in event]


def alone(trial: TrialConfig) -> list[Measurement]:
    reporter = ListReporter()
    train_adapter(trial, reporter)
    return reporter.measurements


def test_trials_wait_for_a_slot_in_the_order_of_their_joining(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []
    join = SlotEngine.join

    def spied(engine: SlotEngine, trial: TrialConfig, reporter: Any) -> Slot:
        joined.append(trial.trial_id)
        return join(engine, trial, reporter)

    monkeypatch.setattr(SlotEngine, "join", spied)
    names = ("endless", "1", "leaves", "2")
    trials = {name: make_trial(trial_id=name, train=QUICK) for name in names}
    trials["endless"] = make_trial(trial_id="endless", train=ENDLESS)

    async def run() -> None:
        host = SlotHost()
        for trial in trials.values():
            await host.join(trial, 1)
        assert not await host.join(make_trial(trial_id="late"), 1, may_wait=False)
        assert await host.next_event("late") == {UNKNOWN: True}
        assert MEASUREMENT in await host.next_event("endless")
        await host.leave("leaves")
        await host.leave("endless")
        for events in await asyncio.gather(follow(host, "1"), follow(host, "2")):
            assert RESULT in events[-1]
        assert await host.load() == 0  # which a host that is to stop ends its process by

    asyncio.run(run())
    assert joined == ["endless", "1", "2"]


def test_a_host_takes_one_trial_at_a_time_that_may_have_ended_a_host(
    make_trial: MakeTrial,
) -> None:
    names = ("first", "second", "other")
    trials = [make_trial(trial_id=name, train={"steps": 4}) for name in names]
    first, second, other = trials

    async def run() -> None:
        host = SlotHost()
        assert await host.join(first, 3, suspect_at=1)
        assert not await host.join(second, 3, suspect_at=0)
        assert await host.join(other, 3)
        for step in (1, 2):  # the first was measured before
            assert (await host.next_event("first"))[MEASUREMENT].step == step
            assert not await host.join(second, 3, suspect_at=0)
        assert MEASUREMENT in await host.next_event("first")  # so the one before is recorded
        assert await host.join(second, 3, suspect_at=0)
        for events in await asyncio.gather(*(follow(host, name) for name in names)):
            assert RESULT in events[-1]

    asyncio.run(run())


def test_where_memory_is_short_micro_batches_are_halved(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds two sequences at a time."""
    whole_pass = SlotEngine._pass

    def limited(engine: SlotEngine, shares: list[Share]) -> list[float]:
        if sum(len(share.samples) for share in shares) > 2:
            raise torch.OutOfMemoryError("no more")
        return whole_pass(engine, shares)

    monkeypatch.setattr(SlotEngine, "_pass", limited)
    train = {"steps": 2, "batch_size": 4, "micro_batch_size": 4}
    trials = [make_trial(trial_id=str(n), seed=n, train=train) for n in range(2)]
    assert all(RESULT in events[-1] for events in host_trials(trials, slots=2))


def test_a_trial_that_finds_no_memory_for_its_slot_waits_until_a_neighbour_is_gone(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, groups = engine_module.AdapterGroup, []

    def limited(adapters: Any, dtype: torch.dtype) -> Any:
        groups.append(len(adapters))
        if groups == [1, 2]:
            raise torch.OutOfMemoryError("no more")
        return whole(adapters, dtype)

    monkeypatch.setattr(engine_module, "AdapterGroup", limited)
    trials = [make_trial(trial_id=str(n), train=QUICK) for n in range(3)]

    async def run() -> None:
        host = SlotHost()
        for trial in trials:
            await host.join(trial, 2)
        for events in await asyncio.gather(*(follow(host, name) for name in "012")):
            assert RESULT in events[-1]

    asyncio.run(run())
    assert groups[:2] == [1, 2]
    assert 2 in groups[2:]


def test_a_probe_neither_sees_nor_touches_a_trial_of_its_number(make_trial: MakeTrial) -> None:
    first = make_trial(train={"steps": 4})
    host_trials([first], 1, SlotHost(stop_requested=lambda trial: True))  # leaves a checkpoint
    before = {file: file.stat().st_mtime_ns for file in Path(first.output_dir).rglob("*")}
    assert any("checkpoints" in file.parts for file in before)
    largest = make_trial(lora={"rank": 16}, output_dir=first.output_dir)
    speeds = asyncio.run(SlotHost().probe(largest, 2, 100, 0.0))
    assert [speed.slots for speed in speeds] == [1, 2]
    after = {file: file.stat().st_mtime_ns for file in Path(first.output_dir).rglob("*")}
    assert after == before


def test_a_stop_request_saves_a_checkpoint_and_ends_every_trial(make_trial: MakeTrial) -> None:
    train = {"steps": 3, "report_every": 3}
    trials = [make_trial(trial_id=str(n), number=n, train=train) for n in range(2)]
    ends = host_trials(trials, 2, SlotHost(stop_requested=lambda trial: True))
    assert all(isinstance(events[-1][ERROR], StopTrial) for events in ends)
    resumed = alone(make_trial(train=train, earlier_attempts=(trials[0].output_dir,)))
    assert resumed[0].step == 2
    assert_measured([*measured(ends[0]), *resumed], alone(make_trial(train=train)))


def test_a_trial_that_alone_is_asked_to_stop_does_so_training_or_waiting(
    make_trial: MakeTrial,
) -> None:
    trials = [make_trial(trial_id=str(n), number=n, train={"steps": 4}) for n in range(3)]
    asked = SlotHost(stop_requested=lambda trial: trial in (1, 2))
    stays, ends, waits = host_trials(trials, 2, asked)
    assert RESULT in stays[-1]
    assert len(measured(ends)) == 1
    assert not measured(waits)
    assert all(isinstance(events[-1][ERROR], StopTrial) for events in (ends, waits))


def test_best_weights_are_in_the_store_and_a_trial_that_does_not_return_leaves_no_files(
    make_trial: MakeTrial,
    base_dir: Path,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path))
    sweep = f"{bucket}/{tmp_path.name}"
    open_storage(sweep).publish(base_dir, "base", last="base.json")
    trial = make_trial(
        train={"steps": 3, "report_every": 1},
        objective=Objective(metric="kl/base_to_tuned", mode="min"),  # best at first
        base_dir=f"{sweep}/base",
        output_dir=f"{sweep}/trials/0000/attempt_1",
    )
    (events,) = host_trials([trial], 1)
    assert RESULT in events[-1]
    assert not list(tmp_path.glob("attempts/*/attempt_*"))
    assert "adapter_model.safetensors" in open_storage(trial.output_dir).children("best")


async def listen_until(host: SlotHost, trial_id: str, step: int) -> None:
    """Take a trial's events up to that step's measurement."""
    while True:
        event = await host.next_event(trial_id)
        assert UNKNOWN not in event
        if MEASUREMENT in event and event[MEASUREMENT].step == step:
            return


def test_a_trial_trains_on_from_an_evaluation_only_once_it_is_recorded(
    make_trial: MakeTrial,
) -> None:
    """Else it would resume from there, and nobody would ever measure what was lost on the way."""
    trial = make_trial(train={"steps": 4, "report_every": 2})
    folder = checkpoint_dir(Path(trial.output_dir), 2)

    async def until(host: SlotHost, step: int) -> None:
        await listen_until(host, trial.trial_id, step)
        while host._running and not any(
            "PackedClient.record" in str(t.get_coro()) for t in asyncio.all_tasks()
        ):
            await asyncio.sleep(0.01)  # until it waits, or has run to its end

    async def run() -> None:
        host = SlotHost()
        await host.join(trial, 1)
        await until(host, 1)
        assert not folder.exists()
        await until(host, 2)
        assert folder.exists()
        assert evaluated(folder) is None
        assert RESULT in (await follow(host, trial.trial_id))[-1]

    asyncio.run(run())


@pytest.mark.slow
def test_a_trial_that_nobody_listens_to_keeps_its_neighbour_waiting_for_a_while_at_most(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its next attempt measures the evaluation that nobody recorded."""
    monkeypatch.setattr("trainables.packing.packed_client._LONGEST_S", 1.0)
    train = {"steps": 4, "report_every": 2}
    unheard, other = (make_trial(trial_id=name, train=train) for name in ("unheard", "other"))
    again = make_trial(trial_id="unheard", train=train, earlier_attempts=(unheard.output_dir,))

    async def run() -> list[dict[str, Any]]:
        host = SlotHost()
        for trial in (unheard, other):
            await host.join(trial, 2)
        neighbour = asyncio.create_task(follow(host, "other"))
        await listen_until(host, "unheard", 1)
        assert (await host.next_event("unheard"))[MEASUREMENT].step == 2  # and is never recorded
        assert RESULT in (await neighbour)[-1]
        await host.at_rest()
        assert await host.next_event("unheard") == {UNKNOWN: True}
        await host.join(again, 1)
        return await follow(host, "unheard")

    assert_measured(measured(asyncio.run(run())), alone(make_trial(train=train))[1:])


def test_a_process_that_was_cut_off_neither_answers_for_the_next_attempt_nor_ends_it(
    make_trial: MakeTrial,
) -> None:
    """It may live on where its node has lost the cluster, which has started the trial again."""
    trial = make_trial(train={"steps": 4})

    async def run() -> dict[str, Any]:
        host = SlotHost()
        await host.join(trial, 1, listener="cut off")
        before = asyncio.create_task(host.next_event(trial.trial_id, "cut off"))
        await asyncio.sleep(0)  # until it waits
        await host.join(trial, 1, listener="new")
        assert await asyncio.wait_for(before, 60.0) == {UNKNOWN: True}
        assert await host.next_event(trial.trial_id, "cut off") == {UNKNOWN: True}
        await host.leave(trial.trial_id, "cut off")
        return await host.next_event(trial.trial_id, "new")

    assert MEASUREMENT in asyncio.run(run())
