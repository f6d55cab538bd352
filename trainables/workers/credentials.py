"""Hands the driver's credentials, and the endpoints they are for, to workers in memory.

Ray could set the driver's environment on other nodes, but would write it to its logs and show it
on its dashboard. Not all of it is secret, but a proxy's address may contain a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# A worker takes each group as a whole: a node's own key does not match the driver's secret.
_GROUPS = (
    ("HF_TOKEN",),
    ("HF_ENDPOINT",),
    ("HF_HUB_OFFLINE",),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
    # Programs read them in upper case, in lower case, or in both.
    ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
)
_KEEPER = "credentials"  # actor names are private to this driver
_asked_for: set[str] = set()  # by job: processes may serve several drivers


@contextmanager
def sharing_credentials() -> Iterator[None]:
    """Make this process's credentials available to workers while the context lasts.

    They are those in its environment, and a token stored by `hf auth login`.
    """
    names = [name for group in _GROUPS for name in group if os.environ.get(name)]
    credentials = {name: os.environ[name] for name in names}
    if "HF_TOKEN" not in credentials and (stored := _stored_token()):
        credentials["HF_TOKEN"] = stored
    if not credentials:
        yield
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = _Keeper
    keeper = actor.options(name=_KEEPER, scheduling_strategy=here).remote()
    # By a call, which goes directly to the process; Ray stores an actor's constructor arguments.
    ray.get(keeper.take.remote(credentials))
    try:
        yield
    finally:
        ray.kill(keeper)


def use_credentials() -> None:
    """Add the driver's shared credentials to this process's environment if it lacks its own.

    To be called before the hub's client is imported, which reads them then.
    """
    job = ray.get_runtime_context().get_job_id()
    if job in _asked_for:
        return
    shared: dict[str, str] = {}
    try:
        shared = ray.get(ray.get_actor(_KEEPER).give.remote())
    except ValueError:  # none are shared
        pass
    except ray.exceptions.RayError:  # it does not answer now; the next caller asks again
        return
    _asked_for.add(job)
    for group in _GROUPS:
        if not any(name in os.environ for name in group):
            os.environ.update({name: shared[name] for name in group if name in shared})


def _stored_token() -> str | None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:  # the user does not want it sent implicitly
        return None
    token: str | None = get_token()
    return token


@ray.remote(num_cpus=0)
class _Keeper:
    def __init__(self) -> None:
        self._credentials: dict[str, str] = {}

    def take(self, credentials: dict[str, str]) -> None:
        self._credentials = credentials

    def give(self) -> dict[str, str]:
        return self._credentials
