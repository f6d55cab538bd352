"""The driver's credentials, and how to reach what they open, handed to workers in memory.

Workers on other nodes do not have the driver's environment. Ray could set it for them, but writes
it to its logs then and shows it on its dashboard. Not all of it is secret; the address of a proxy
may hold a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Each of these is taken as a whole: a key of the node's own fits no secret of the driver's.
_TOGETHER = (
    ("HF_TOKEN",),
    ("HF_ENDPOINT",),
    ("HF_HUB_OFFLINE",),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
    # Programs read them in capitals, in small letters, or in both.
    ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
)
_KEEPER = "credentials"  # a name among those of this driver alone
_asked_for: set[str] = set()  # by job: processes may serve several drivers


@contextmanager
def sharing_credentials() -> Iterator[None]:
    """While the context lasts, workers can have the credentials of this process.

    They are those in its environment, and a token that `hf auth login` has stored.
    """
    names = [name for together in _TOGETHER for name in together]
    credentials = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "HF_TOKEN" not in credentials and (stored := _stored_token()):
        credentials["HF_TOKEN"] = stored
    if not credentials:
        yield
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = _Keeper
    keeper = actor.options(name=_KEEPER, scheduling_strategy=here).remote()
    # By a call, which goes to the process itself; Ray stores what a process is created with.
    ray.get(keeper.take.remote(credentials))
    try:
        yield
    finally:
        ray.kill(keeper)


def use_credentials() -> None:
    """Put what the driver shares into this process's environment, where it has none of its own."""
    job = ray.get_runtime_context().get_job_id()
    if job in _asked_for:
        return
    shared: dict[str, str] = {}
    try:
        shared = ray.get(ray.get_actor(_KEEPER).give.remote())
    except ValueError:  # none are shared
        pass
    except ray.exceptions.RayError:  # it does not answer now; the next who needs them asks again
        return
    _asked_for.add(job)
    for together in _TOGETHER:
        if not any(name in os.environ for name in together):
            os.environ.update({name: shared[name] for name in together if name in shared})


def _stored_token() -> str | None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:  # the user does not want it sent unasked
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
