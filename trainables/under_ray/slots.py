"""Trials in slots: hosts as actors, and a trial that listens to one."""

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
from trainables.results.records import Measurement, TrialResult
from trainables.slots import host
from trainables.training.reporter import Reporter, StopTrial
from trainables.under_ray.credentials import use_credentials
from trainables.under_ray.gpu_types import as_options
from trainables.under_ray.granted_gpus import check_granted_gpus
from trainables.under_ray.node import check_sees
from trainables.under_ray.stop_request import stop_is_requested
from trainables.under_ray.tasks import evaluate_base_to

_ANSWER_S = 5.0


@dataclass(frozen=True)
class SlotHosts:
    """Where LoRA trials train together.

    Attributes:
        actors: handles of `SlotHost` actors.
        slots: of each.
    """

    actors: tuple[Any, ...]
    slots: int


class SlotHost(host.SlotHost):
    """A host in a process of Ray's."""

    def __init__(self) -> None:
        use_credentials()
        super().__init__(stop_is_requested)

    @ray.method(max_task_retries=3)
    async def evaluate_base(self, *arguments: Any) -> UserError | None:
        """`evaluate_base_to`: with the base in memory, and tasks, that trials here find ready."""
        fault: UserError | None = await self._in_thread(lambda: evaluate_base_to(*arguments))
        return fault

    def _engine_for(self, trial: TrialConfig) -> Any:
        check_granted_gpus()
        check_sees(trial.base_dir, "base.json")
        return super()._engine_for(trial)

    async def next_event(self, trial_id: str) -> host.Event:
        """What a trial has to tell next; once all have told that they stopped the process ends.

        Ray starts it anew, on another node where its own is about to go.
        """
        event = await super().next_event(trial_id)
        if await self.load() is None and not self._guests:
            asyncio.get_running_loop().call_later(_ANSWER_S, os._exit, 0)
        return event


def start_slot_host(held: Mapping[str, float]) -> Any:
    """A `SlotHost` as an actor that holds so much; Ray starts it anew should its process die."""
    actor = ray.remote(SlotHost)
    return actor.options(**as_options(held), max_restarts=-1, max_concurrency=1000).remote()


def train_in_slot(slot_hosts: SlotHosts, trial: TrialConfig, reporter: Reporter) -> TrialResult:
    """Let a host train the trial beside others, and pass on what it reports."""
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
    finally:  # stopped, too: Tune ends the thread in its report
        actor.leave.remote(trial.trial_id)


def _join(slot_hosts: SlotHosts, trial: TrialConfig) -> Any:
    """Have a host take the trial in, one with a free slot where there is any.

    There are as many slots as trials run at a time, but a host may be waiting for its node yet.

    Returns:
        The host.

    Raises:
        StopTrial: there is none, and there will be none.
    """
    plain = trial.model_dump(mode="json")
    actors = _by_load(slot_hosts)
    for actor in actors:  # an earlier attempt, whose process has died, may train there still
        with suppress(RayActorError):
            ray.get(actor.leave.remote(trial.trial_id))
    for actor in actors:  # others may have come since it was asked how many it has
        if ray.get(actor.join.remote(plain, slot_hosts.slots, may_wait=False)):
            return actor
    ray.get(actors[0].join.remote(plain, slot_hosts.slots))
    return actors[0]


def _by_load(slot_hosts: SlotHosts) -> list[Any]:
    """The hosts that are up, the one with most room first; some may be about to leave their node.

    Raises:
        StopTrial: there is none, and there will be none.
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
    with suppress(RayActorError):  # it has ended, and starts anew
        load: int | None = ray.get(answer)
        return load
    return None
