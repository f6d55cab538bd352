"""The driver's way to stop all its trials gently: one actor that every worker waits on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from threading import Event, Thread
from typing import Any

import ray

_STOP = "stop request"  # a name among those of this driver alone


class StopRequest:
    """The driver's way to ask all its trials to save a checkpoint and end.

    Args:
        reserve: what its actor holds, which shall live for as long as the driver does.
    """

    def __init__(self, reserve: Mapping[str, float]) -> None:
        custom = dict(reserve)
        actor: Any = _StopRequest
        self._actor = actor.options(
            name=_STOP, memory=custom.pop("memory", None), resources=custom
        ).remote()

    def make(self) -> None:
        """Ask; trials end at their next step."""
        ray.get(self._actor.make.remote())

    def close(self) -> None:
        """Let the next sweep of this driver have the name."""
        ray.kill(self._actor)


@ray.remote(num_cpus=0)
class _StopRequest:
    def __init__(self) -> None:
        self._made = asyncio.Event()

    async def make(self) -> None:
        self._made.set()

    async def wait(self) -> None:
        await self._made.wait()


def stop_is_requested() -> bool:
    """Whether the driver has asked this process's trials to stop."""
    return _stop_requested(ray.get_runtime_context().get_job_id()).is_set()


@lru_cache
def _stop_requested(job: str) -> Event:
    """Set once this process's trials shall stop; one thread waits for all of them."""
    requested = Event()

    def wait() -> None:
        with suppress(ValueError, ray.exceptions.RayError):  # none is made, or it is gone
            ray.get(ray.get_actor(_STOP).wait.remote())
            requested.set()

    Thread(target=wait, name="stop request", daemon=True).start()
    return requested
