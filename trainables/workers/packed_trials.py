"""Packed trials under Ray: slot hosts as actors, and the trials that listen to them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from trainables.compat.ray import actor_state
from trainables.config import TrialConfig
from trainables.errors import UserError
from trainables.packing import host
from trainables.packing.planning import is_packed
from trainables.records.schema import BASE_RECORD, TrialResult
from trainables.training.reporter import StopTrial
from trainables.workers.credentials import use_credentials
from trainables.workers.gpu_types import as_options
from trainables.workers.granted_gpus import check_granted_gpus
from trainables.workers.node import check_sees
from trainables.workers.ray_tasks import evaluate_base_on_worker
from trainables.workers.reporters import Report
from trainables.workers.stop_request import stop_is_requested
from trainables.workers.trial_outcome import LOST

logger = logging.getLogger(__name__)

_POLL_S = 2.0
_EXIT_S = 5.0


@dataclass(frozen=True)
class SlotHosts:
    """Handles of the `SlotHostActor`s, the slots of each, and the recipes that train there."""

    actors: tuple[Any, ...]
    slots: int
    recipes: tuple[str, ...]

    def train(self, trial: TrialConfig) -> bool:
        """Whether a trial trains in one of them."""
        return is_packed(trial, self.recipes)


class SlotHostActor(host.SlotHost):
    """A host in a Ray worker process."""

    def __init__(self) -> None:
        use_credentials()
        super().__init__(stop_is_requested)

    async def evaluate_base(self, *arguments: Any) -> UserError | None:
        """Run `evaluate_base_on_worker`, which leaves base and tasks in memory for trials here."""
        fault: UserError | None = await self._in_thread(evaluate_base_on_worker, *arguments)
        return fault

    def _engine_for(self, trial: TrialConfig) -> Any:
        check_granted_gpus()
        check_sees(trial.base_dir, BASE_RECORD)
        return super()._engine_for(trial)

    async def next_event(self, trial_id: str, listener: str = "") -> host.Event:
        """See `SlotHost`; ends the process once all trials have said that they stopped.

        Ray restarts it, on another node if its own is going away.
        """
        event = await super().next_event(trial_id, listener)
        if await self.load() is None and not self._clients:
            asyncio.get_running_loop().call_later(_EXIT_S, os._exit, 0)
        return event


def start_slot_host(held: Mapping[str, float]) -> Any:
    """Start a `SlotHostActor` that holds these resources; Ray restarts it if its process dies."""
    actor = ray.remote(SlotHostActor)
    return actor.options(**as_options(held), max_restarts=-1, max_concurrency=1000).remote()


def life_of(actor: Any) -> tuple[str, int]:
    """A host's state, in Ray's word, and how often it was restarted."""
    return actor_state(actor)


def train_in_slot(
    slot_hosts: SlotHosts, trial: TrialConfig, report: Report, *, suspect_at: int | None
) -> TrialResult:
    """Have a host train the trial alongside others, and pass on its reports.

    A suspect trial has lost its host without getting beyond this step. It may be the cause, so it
    joins no other suspect one.
    """
    listener = secrets.token_hex(8)
    actor = _join(slot_hosts, trial, listener, suspect_at)
    logger.warning("trains in a slot, beside up to %d other trials", slot_hosts.slots - 1)
    try:
        while True:
            event = ray.get(actor.next_event.remote(trial.trial_id, listener))
            if host.MEASUREMENT in event:
                report(event[host.MEASUREMENT])
            elif host.RESULT in event:
                result: TrialResult = event[host.RESULT]
                return result
            elif host.ERROR in event:
                raise event[host.ERROR]
            elif host.UNKNOWN in event:
                raise RayActorError(error_msg="the slot host was restarted without this trial")
    finally:  # also when Tune stops the trial by ending the thread in its report
        actor.leave.remote(trial.trial_id, listener)


def _join(
    slot_hosts: SlotHosts, trial: TrialConfig, listener: str, suspect_at: int | None = None
) -> Any:
    """Have a host accept the trial, preferably one with a free slot; returns the host.

    There is a slot for each started trial, but perhaps on a host that still waits for its node. So
    the trial polls the hosts that are up, and queues only once all are.

    Raises:
        StopTrial: the trial should stop before there is a slot for it.
        RayActorError: all hosts have ended for good.
    """
    question = {"trial": trial, "listener": listener, "suspect_at": suspect_at}
    question["slots"] = slot_hosts.slots
    asked: dict[Any, Any] = {}
    while True:
        actors = _by_load(slot_hosts, asked)
        for left in [actor.leave.remote(trial.trial_id) for actor in actors]:
            with suppress(*LOST):  # an earlier attempt may still train there
                ray.get(left)
        for actor in actors:  # others may have joined since its load was asked
            if _accepts(actor, question, may_wait=False):
                return actor
        are_all_up = len(actors) == len(slot_hosts.actors)
        if are_all_up and _accepts(actors[0], question, may_wait=True):
            return actors[0]
        if stop_is_requested(trial.number):
            raise StopTrial
        if all(life_of(actor)[0] == "DEAD" for actor in slot_hosts.actors):
            raise RayActorError(error_msg="all slot hosts have ended")
        time.sleep(_POLL_S)


def _accepts(actor: Any, question: dict[str, Any], *, may_wait: bool) -> bool:
    """Whether a host takes a trial."""
    try:
        return bool(ray.get(actor.join.remote(**question, may_wait=may_wait)))
    except LOST:  # perhaps only its answer is lost, and two hosts would train the trial
        actor.leave.remote(question["trial"].trial_id, question["listener"])
        return False


def _by_load(slot_hosts: SlotHosts, asked: dict[Any, Any]) -> list[Any]:
    """The hosts that are up, least loaded first; those about to leave their node are left out.

    `asked` has the questions that wait for an answer: a host that is not up is asked once.
    """
    asked |= {actor: actor.load.remote() for actor in slot_hosts.actors if actor not in asked}
    answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_POLL_S)
    answers = {actor: answer for actor, answer in asked.items() if answer in answered}
    for actor in answers:
        del asked[actor]
    loads = {a: load for a, answer in answers.items() if (load := _load(answer)) is not None}
    return sorted(loads, key=loads.__getitem__)


def _load(answer: Any) -> int | None:
    with suppress(*LOST):  # it is restarting, or could never start
        load: int | None = ray.get(answer)
        return load
    return None
