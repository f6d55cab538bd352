"""Who listens to a trial in a slot, and what becomes of one that nobody listens to any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_slot_host import follow

from trainables.packing.host import ERROR, MEASUREMENT, RESULT, UNKNOWN, SlotHost
from trainables.packing.packed_client import PackedClient
from trainables.training.checkpoint_files import checkpoint_dir, evaluated
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]


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
    trial = make_trial(train={"steps": 12, "report_every": 4})
    folder = checkpoint_dir(Path(trial.output_dir), 4)

    async def until(host: SlotHost, step: int) -> None:
        await listen_until(host, trial.trial_id, step)
        while host._running and not any(
            "PackedClient.record" in str(t.get_coro()) for t in asyncio.all_tasks()
        ):
            await asyncio.sleep(0.01)  # until it waits, or has run to its end

    async def run() -> None:
        host = SlotHost()
        await host.join(trial, 1)
        await until(host, 3)
        assert not folder.exists()
        await until(host, 4)
        assert folder.exists()
        assert evaluated(folder) is None
        assert RESULT in (await follow(host, trial.trial_id))[-1]

    asyncio.run(run())


@pytest.mark.parametrize("leaves", [True, False])
def test_a_trial_that_nobody_listens_to_any_more_keeps_its_neighbour_waiting_for_a_while_at_most(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr("trainables.packing.packed_client._LONGEST_S", 600.0 if leaves else 2.0)
    train = {"steps": 12, "report_every": 4}
    left, other = (make_trial(trial_id=name, train=train) for name in ("left", "other"))

    async def run() -> list[dict[str, Any]]:
        host = SlotHost()
        for trial in (left, other):
            await host.join(trial, 2)
        of_other = asyncio.create_task(follow(host, "other"))
        await listen_until(host, "left", 4)
        if leaves:
            asyncio.get_running_loop().call_later(1.0, asyncio.create_task, host.leave("left"))
        return await asyncio.wait_for(of_other, 30.0)

    assert RESULT in asyncio.run(run())[-1]


@pytest.mark.parametrize("is_replaced", [True, False], ids=["at once", "too late"])
def test_an_evaluation_that_nobody_recorded_is_made_up_for(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    """The trial's own process dies while its host evaluates; the next attempt measures it all."""
    monkeypatch.setattr(
        "trainables.packing.packed_client._LONGEST_S", 600.0 if is_replaced else 1.0
    )
    train = {"steps": 12, "report_every": 4}
    first = make_trial(train=train)
    second = make_trial(train=train, earlier_attempts=(first.output_dir,))

    async def run() -> list[dict[str, Any]]:
        host = SlotHost()
        await host.join(first, 1)
        await listen_until(host, first.trial_id, 3)
        lost = await host.next_event(first.trial_id)
        assert lost[MEASUREMENT].step == 4
        if not is_replaced:
            await host.at_rest()
            assert await host.next_event(first.trial_id) == {UNKNOWN: True}
        await host.join(second, 1)
        return await follow(host, second.trial_id)

    made_up = [event[MEASUREMENT] for event in asyncio.run(run()) if MEASUREMENT in event]
    undisturbed = ListReporter()
    train_lora(make_trial(train=train), undisturbed)
    expected = undisturbed.measurements[3:]
    assert [m.step for m in made_up] == [m.step for m in expected]
    for measurement, other in zip(made_up, expected, strict=True):
        for key in other.metrics:
            if not key.startswith(("time/", "perf/", "memory/")):
                expected_value = pytest.approx(other.metrics[key], abs=1e-4)
                assert measurement.metrics[key] == expected_value, key


def test_a_process_that_was_cut_off_neither_answers_for_the_next_attempt_nor_ends_it(
    make_trial: MakeTrial,
) -> None:
    """It may live on where its node has lost the cluster, which has started the trial again."""
    trial = make_trial(train={"steps": 12, "report_every": 4})

    async def run() -> dict[str, Any]:
        host = SlotHost()
        await host.join(trial, 1, listener="cut off")
        before = asyncio.create_task(host.next_event(trial.trial_id, "cut off"))
        await asyncio.sleep(0)  # until it waits
        await host.join(trial, 1, listener="new")
        assert await asyncio.wait_for(before, 10.0) == {UNKNOWN: True}
        assert await host.next_event(trial.trial_id, "cut off") == {UNKNOWN: True}
        await host.leave(trial.trial_id, "cut off")
        return await host.next_event(trial.trial_id, "new")

    assert MEASUREMENT in asyncio.run(run())


@pytest.mark.parametrize("is_there", [True, False])
def test_only_a_trial_that_somebody_listens_to_starts_again(
    make_trial: MakeTrial, is_there: bool
) -> None:
    async def run() -> bool:
        host, client = SlotHost(), PackedClient(make_trial())
        host._clients[client.trial.trial_id] = client
        asked = asyncio.create_task(host.next_event(client.trial.trial_id))
        await asyncio.sleep(0)
        if not is_there:
            client.release()
        await host._end(client, torch.OutOfMemoryError("no more"))
        if not is_there:
            assert await asyncio.wait_for(asked, 10.0) == {UNKNOWN: True}
            assert await host.load() == 0
        return list(host._waiting) == [client]

    assert asyncio.run(run()) == is_there


def test_a_dead_process_that_asked_for_the_end_does_not_take_the_next_attempt_s(
    make_trial: MakeTrial,
) -> None:
    async def run() -> None:
        host, old, new = SlotHost(), PackedClient(make_trial()), PackedClient(make_trial())
        host._clients[old.trial.trial_id] = old
        asked = asyncio.create_task(host.next_event(old.trial.trial_id))
        await asyncio.sleep(0)
        host._clients[new.trial.trial_id] = new
        old.events.put_nowait({ERROR: ZeroDivisionError()})
        await asked
        assert host._clients == {new.trial.trial_id: new}

    asyncio.run(run())
