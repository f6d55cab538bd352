"""Trials in slots: hosts as actors, and a trial that listens to one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray

from trainables.config import TrialConfig
from trainables.records import Measurement, TrialResult
from trainables.reporter import Reporter
from trainables.slots import host
from trainables.under_ray.hub_token import use_hub_token
from trainables.under_ray.stop_request import stop_is_requested

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
        use_hub_token()
        super().__init__(stop_is_requested)


def start_slot_host(cpus: float, gpus: float) -> Any:
    """A `SlotHost` as an actor, which Ray starts anew should its process die."""
    actor = ray.remote(SlotHost)
    return actor.options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_concurrency=1000
    ).remote()


def train_in_slot(slot_hosts: SlotHosts, trial: TrialConfig, reporter: Reporter) -> TrialResult:
    """Let a host train the trial beside others, and pass on what it reports."""
    actor = _least_loaded(slot_hosts)
    logging.getLogger(__name__).warning(
        f"trains in a slot, beside up to {slot_hosts.slots - 1} other trials"
    )
    ray.get(actor.join.remote(trial.model_dump(mode="json"), slot_hosts.slots))
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
                raise ray.exceptions.RayActorError
    finally:  # stopped, too: Tune ends the thread in its report
        actor.leave.remote(trial.trial_id)


def _least_loaded(slot_hosts: SlotHosts) -> Any:
    """The host with most room of those that are up; some may wait for their node yet."""
    loads = {actor.load.remote(): actor for actor in slot_hosts.actors}
    answers, _ = ray.wait(list(loads), num_returns=len(loads), timeout=_ANSWER_S)
    answers = answers or ray.wait(list(loads))[0]
    return loads[min(answers, key=ray.get)]
