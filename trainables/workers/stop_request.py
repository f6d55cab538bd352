"""Asks trials to save a checkpoint and stop: one actor on which each of their processes waits.

There are three reasons. The driver asks all trials, which resume when its command is run again; or
it asks one alone, which the user ends by hand; or a node drains, as after `ray drain-node` or
where Kubernetes or systemd terminates `ray start --block`. What trains there, or has its trial's
own process there, resumes elsewhere at once. A raylet that is terminated itself leaves no time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Set
from contextlib import suppress
from functools import lru_cache
from threading import Event, Thread
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError

from trainables.compat.ray import draining_nodes
from trainables.workers.gpu_types import as_options

_STOP = "stop request"  # actor names are private to this driver
_POLL_S = 1.0
_LONGEST_WAIT_S = 10.0  # for the first answer; the actor may just be moving to another node
# In one run of the command, as those of dead processes count, too; Ray's default is a thousand.
_MOST_LISTENERS = 1_000_000
_NODE_OF_TRIAL = "FORGETTING_SWEEPS_NODE_OF_TRIAL"


class _Request(NamedTuple):
    """Who should stop: everyone, or the trials of these numbers."""

    everyone: bool = False
    trials: frozenset[int] = frozenset()


class _Listener:
    """The newest request that a process has received, if any."""

    def __init__(self) -> None:
        self.request = _Request()
        self.is_answered = Event()


class StopRequest:
    """Lets the driver ask its trials to save a checkpoint and end; a context manager.

    `reserve`: resources its actor holds; it must live as long as the driver.
    """

    def __init__(self, reserve: Mapping[str, float]) -> None:
        actor: Any = _StopRequest
        self._actor = actor.options(name=_STOP, **as_options(reserve)).remote()

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, *error: object) -> None:
        ray.kill(self._actor)  # frees the name for this driver's next sweep

    def make(self) -> None:
        """Ask all trials; they end at their next step."""
        with suppress(RayActorError):  # the sweep has ended meanwhile, and with it this context
            ray.get(self._actor.make.remote())

    def ask(self, trials: Set[int]) -> None:
        """Ask these trials alone, by number, and no longer any others; does not wait for Ray.

        Ask again now and then: the actor may have moved to another node and forgotten it.
        """
        self._actor.ask.remote(frozenset(trials))


# Its node may go away, too. It is then restarted on another, and pending waits are retried.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=_MOST_LISTENERS)
class _StopRequest:
    def __init__(self) -> None:
        self._made = False
        self._asked: frozenset[int] = frozenset()
        self._leaving: set[str] = set()
        self._changed = asyncio.Condition()
        self._polling: asyncio.Task[None] | None = None

    async def make(self) -> None:
        self._made = True
        await self._notify()

    async def ask(self, trials: frozenset[int]) -> None:
        if trials != self._asked:
            self._asked = trials
            await self._notify()

    async def wait(self, nodes: set[str], known: _Request | None) -> _Request:
        """The request to processes on these nodes, once it differs from the known one."""
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())

        def now() -> _Request:
            return _Request(self._made or bool(nodes & self._leaving), self._asked)

        async with self._changed:
            await self._changed.wait_for(lambda: now() != known)
            return now()

    async def _poll(self) -> None:
        while True:
            leaving = draining_nodes()
            if leaving != self._leaving:
                self._leaving = leaving
                await self._notify()
            await asyncio.sleep(_POLL_S)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def stop_is_requested(trial: int | None = None) -> bool:
    """Whether this process's trials should save a checkpoint and end, or that of this number."""
    request = _listener().request
    return request.everyone or trial in request.trials


def is_ended_by_hand(trial: int) -> bool:
    """Whether the trial of this number was asked to end, and will not resume."""
    listener = _listener()
    listener.is_answered.wait(_LONGEST_WAIT_S)
    return trial in listener.request.trials


def stops_with_this_node() -> dict[str, str]:
    """Environment for a process elsewhere whose trial must stop when this process's node goes."""
    return {_NODE_OF_TRIAL: ray.get_runtime_context().get_node_id()}


def _listener() -> _Listener:
    return _listen(ray.get_runtime_context().get_job_id())


@lru_cache
def _listen(job: str) -> _Listener:
    """This process's listener, kept up to date by one thread for all its trials."""
    listener = _Listener()

    def listen() -> None:
        here = ray.get_runtime_context().get_node_id()
        nodes = {here, os.environ.get(_NODE_OF_TRIAL, here)}
        known = None
        with suppress(ValueError, ray.exceptions.RayError):  # no actor, or it is gone
            actor = ray.get_actor(_STOP)
            while not listener.request.everyone:
                known = listener.request = ray.get(actor.wait.remote(nodes, known))
                listener.is_answered.set()
        listener.is_answered.set()

    Thread(target=listen, name="stop request", daemon=True).start()
    return listener
