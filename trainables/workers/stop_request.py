"""How trials are asked to stop gracefully: one actor that each of their processes waits on.

There are three reasons to stop. The driver asks all trials, which resume when its command is run
again. Or it asks one alone, which the user ends by hand. Or a node is going away ("draining" in
Ray): `ray start --block` announces this when it is terminated, as Kubernetes and systemd do, and
so does `ray drain-node`. What trains there resumes elsewhere at once; so does a group of workers if
only its trial's own process is there. A node whose raylet itself is terminated leaves no time: Ray
kills its workers.
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

from trainables.workers.gpu_types import as_options

_STOP = "stop request"  # actor names are private to this driver
_POLL_S = 1.0
_LONGEST_WAIT_S = 10.0  # for the first answer; the actor may just be moving to another node
# In one run of the command, as those of dead processes count, too; Ray's default is a thousand.
_MOST_LISTENERS = 1_000_000
_NODE_OF_TRIAL = "FORGETTING_SWEEPS_NODE_OF_TRIAL"


class _Heard(NamedTuple):
    """Who should stop: everyone, or the trials of these numbers."""

    everyone: bool = False
    trials: frozenset[int] = frozenset()


class _Listener:
    """What a process has heard, and whether it has heard anything yet."""

    def __init__(self) -> None:
        self.heard = _Heard()
        self.has_heard = Event()


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
        await self._tell()

    async def ask(self, trials: frozenset[int]) -> None:
        if trials != self._asked:
            self._asked = trials
            await self._tell()

    async def wait(self, nodes: set[str], known: _Heard | None) -> _Heard:
        """Return once who should stop is not what is known, on these nodes; at once at first."""
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())

        def heard() -> _Heard:
            return _Heard(self._made or bool(nodes & self._leaving), self._asked)

        async with self._changed:
            await self._changed.wait_for(lambda: heard() != known)
            return heard()

    async def _poll(self) -> None:
        while True:
            # Ray has no public API for this; its own trainer does the same.
            leaving = set(ray._private.state.state.get_draining_nodes())
            if leaving != self._leaving:
                self._leaving = leaving
                await self._tell()
            await asyncio.sleep(_POLL_S)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def stop_is_requested(trial: int | None = None) -> bool:
    """Whether this process's trials should save a checkpoint and end, or that of this number."""
    heard = _listener().heard
    return heard.everyone or trial in heard.trials


def is_ended_by_hand(trial: int) -> bool:
    """Whether the trial of this number was asked to end, and will not resume."""
    listener = _listener()
    listener.has_heard.wait(_LONGEST_WAIT_S)
    return trial in listener.heard.trials


def stops_with_this_node() -> dict[str, str]:
    """Environment for a process elsewhere whose trial must stop when this process's node goes."""
    return {_NODE_OF_TRIAL: ray.get_runtime_context().get_node_id()}


def _listener() -> _Listener:
    return _listen(ray.get_runtime_context().get_job_id())


@lru_cache
def _listen(job: str) -> _Listener:
    """What this process hears, kept up to date by one thread for all its trials."""
    listener = _Listener()

    def listen() -> None:
        here = ray.get_runtime_context().get_node_id()
        nodes = {here, os.environ.get(_NODE_OF_TRIAL, here)}
        known = None
        with suppress(ValueError, ray.exceptions.RayError):  # no actor, or it is gone
            actor = ray.get_actor(_STOP)
            while not listener.heard.everyone:
                known = listener.heard = ray.get(actor.wait.remote(nodes, known))
                listener.has_heard.set()
        listener.has_heard.set()

    Thread(target=listen, name="stop request", daemon=True).start()
    return listener
