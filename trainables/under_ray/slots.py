"""Trials in slots: hosts as actors, and trials that listen to them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from trainables.config import TrialConfig
from trainables.errors import UserError
from trainables.results.records import BASE_RECORD, Measurement, TrialResult
from trainables.slots import host
from trainables.training.reporter import Reporter, StopTrial
from trainables.under_ray.credentials import use_credentials
from trainables.under_ray.endings import LOST
from trainables.under_ray.gpu_types import as_options
from trainables.under_ray.granted_gpus import check_granted_gpus
from trainables.under_ray.node import check_sees
from trainables.under_ray.stop_request import stop_is_requested
from trainables.under_ray.tasks import evaluate_base_on_worker

_ANSWER_S = 5.0


@dataclass(frozen=True)
class SlotHosts:
    """Where LoRA trials train together.

    Attributes:
        actors: handles of `SlotHostActor`.
        slots: number per actor.
    """

    actors: tuple[Any, ...]
    slots: int


class SlotHostActor(host.SlotHost):
    """A host in a Ray worker process."""

    def __init__(self) -> None:
        use_credentials()
        super().__init__(stop_is_requested)

    @ray.method(max_task_retries=3)
    async def evaluate_base(self, *arguments: Any) -> UserError | None:
        """Run `evaluate_base_on_worker`, which leaves base and tasks in memory for trials here."""
        fault: UserError | None = await self._in_thread(lambda: evaluate_base_on_worker(*arguments))
        return fault

    def _engine_for(self, trial: TrialConfig) -> Any:
        check_granted_gpus()
        check_sees(trial.base_dir, BASE_RECORD)
        return super()._engine_for(trial)

    async def next_event(self, trial_id: str) -> host.Event:
        """Wait for a trial's next event; ends the process once all trials have said they stopped.

        Ray restarts it, on another node if its own is going away.
        """
        event = await super().next_event(trial_id)
        if await self.load() is None and not self._guests:
            asyncio.get_running_loop().call_later(_ANSWER_S, os._exit, 0)
        return event


def start_slot_host(held: Mapping[str, float]) -> Any:
    """Start a `SlotHostActor` that holds these resources; Ray restarts it if its process dies."""
    actor = ray.remote(SlotHostActor)
    return actor.options(**as_options(held), max_restarts=-1, max_concurrency=1000).remote()


def train_in_slot(slot_hosts: SlotHosts, trial: TrialConfig, reporter: Reporter) -> TrialResult:
    """Have a host train the trial alongside others, and pass on its reports."""
    actor = _join(slot_hosts, trial)
    logging.getLogger(__name__).warning(
        f"trains in a slot, beside up to {slot_hosts.slots - 1} other trials"
    )
    try:
        while True:
            event = ray.get(actor.next_event.remote(trial.trial_id))
            if host.MEASUREMENT in event:
                reporter.report(Measurement.model_validate(event[host.MEASUREMENT]))
            elif host.RESULT in event:
                return TrialResult.model_validate(event[host.RESULT])
            elif host.ERROR in event:
                raise event[host.ERROR]
            elif host.UNKNOWN in event:
                raise RayActorError
    finally:  # also when Tune stops the trial by ending the thread in its report
        actor.leave.remote(trial.trial_id)


def _join(slot_hosts: SlotHosts, trial: TrialConfig) -> Any:
    """Have a host accept the trial, preferably one with a free slot.

    There is a slot for each trial that is started, but its host may still wait for its node.

    Returns:
        The host.

    Raises:
        StopTrial: there is no host, and there will be none.
    """
    plain = trial.model_dump(mode="json")
    actors = _by_load(slot_hosts)
    for actor in actors:  # an earlier attempt whose process died may still train there
        with suppress(*LOST):
            ray.get(actor.leave.remote(trial.trial_id))
    for actor in actors:  # others may have joined since its load was asked
        if ray.get(actor.join.remote(plain, slot_hosts.slots, may_wait=False)):
            return actor
    ray.get(actors[0].join.remote(plain, slot_hosts.slots))
    return actors[0]


def _by_load(slot_hosts: SlotHosts) -> list[Any]:
    """The hosts that are up, least loaded first; those about to leave their node are left out.

    Raises:
        StopTrial: there is no host, and there will be none.
    """
    while True:
        asked = {actor.load.remote(): actor for actor in slot_hosts.actors}
        answers, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
        loads = {answer: load for answer in answers if (load := _load(answer)) is not None}
        if loads:
            return [asked[answer] for answer in sorted(loads, key=loads.__getitem__)]
        if stop_is_requested():
            raise StopTrial
        time.sleep(_ANSWER_S)


def _load(answer: Any) -> int | None:
    with suppress(*LOST):  # it has died and is restarting
        load: int | None = ray.get(answer)
        return load
    return None
