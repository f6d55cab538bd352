"""The driver's token for the hub, handed to workers from memory to memory.

Workers on other nodes do not have the driver's environment. Ray could set it for them, but writes
it to its logs then and shows it on its dashboard.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_TOKEN = "HF_TOKEN"  # noqa: S105 - its name
_KEEPER = "hub token"  # a name among those of this driver alone


@contextmanager
def sharing_hub_token() -> Iterator[None]:
    """While the context lasts, workers can have the token in this process's environment, if any."""
    token = os.environ.get(_TOKEN)
    if not token:
        yield
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = _Keeper
    keeper = actor.options(name=_KEEPER, scheduling_strategy=here).remote()
    # By a call, which goes to the process itself; Ray stores what a process is created with.
    ray.get(keeper.take.remote(token))
    try:
        yield
    finally:
        ray.kill(keeper)


def use_hub_token() -> None:
    """Put the driver's token, if it shares one, into this process's environment."""
    _use_hub_token(ray.get_runtime_context().get_job_id())


@lru_cache
def _use_hub_token(job: str) -> None:
    with suppress(ValueError, ray.exceptions.RayError):  # none is shared, or no more
        token = ray.get(ray.get_actor(_KEEPER).give.remote())
        os.environ.setdefault(_TOKEN, token)


@ray.remote(num_cpus=0)
class _Keeper:
    def __init__(self) -> None:
        self._token = ""

    def take(self, token: str) -> None:
        self._token = token

    def give(self) -> str:
        return self._token
