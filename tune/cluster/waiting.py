"""Waiting for an answer from the cluster before the first trial, and saying so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from trainables.errors import Fault, UserError, first_line
from trainables.under_ray.autoscaler import last_failure
from trainables.under_ray.slots import life_of
from tune.cluster.node_checks import nodes_up
from tune.resources.capacity import wording, workers_in

_TELL_EVERY_S = 30.0
_POLL_S = 1.0
_MOST_LOSSES = 3
# Ray notices within it that a node is gone; before, a host there seems to be up.
_UNNOTICED_S = 60.0


def awaited(answer: Any, held: Mapping[str, float], tell: Callable[[str], None]) -> Any:
    """The answer; repeatedly tells what it waits for while no node could run what gives it.

    `held` is what is held by the process that gives it.
    """
    while not ray.wait([answer], timeout=_TELL_EVERY_S)[0]:
        _tell_of_wait(held, tell)
    return ray.get(answer)


def answer_of(
    host: Any,
    method: str,
    arguments: tuple[Any, ...],
    held: Mapping[str, float],
    tell: Callable[[str], None],
) -> Any:
    """What a host of slots answers; asked again, up to three times, where it loses its process.

    Ray's own retries would be over before a new process, let alone another node, is up.

    Raises:
        ActorUnavailableError, OutOfMemoryError: it loses its process each time.
    """
    for _ in range(_MOST_LOSSES):
        state, restarts = life_of(host)
        restarts -= state == "RESTARTING"  # Ray counts it as it begins
        with suppress(ActorUnavailableError, OutOfMemoryError):
            return awaited(getattr(host, method).remote(*arguments), held, tell)
        tell("a host of slots lost its process; it is asked again once it has another")
        _await_restart(host, restarts, held, tell)
    return awaited(getattr(host, method).remote(*arguments), held, tell)


def _await_restart(
    host: Any, restarts: int, held: Mapping[str, float], tell: Callable[[str], None]
) -> None:
    """Wait until a host is up again, or for good not; or until it cannot have been down."""
    started = told = time.monotonic()
    while True:
        now = time.monotonic()
        state, known = life_of(host)
        is_another = known > restarts or now - started > _UNNOTICED_S
        if state == "DEAD" or (state == "ALIVE" and is_another):
            return
        if now - told > _TELL_EVERY_S:
            _tell_of_wait(held, tell)
            told = now
        time.sleep(_POLL_S)


def _tell_of_wait(held: Mapping[str, float], tell: Callable[[str], None]) -> None:
    wanted = {kind: amount for kind, amount in held.items() if amount}
    if not any(workers_in(wanted, node) for node in nodes_up()):  # however busy it is
        failure = last_failure(ray.get_runtime_context().gcs_address)
        tell(f"waiting for a node with {wording(wanted)}{f': {failure}' if failure else ''}")


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Tell the user what to do if a process or node is lost before the first trial.

    Raises:
        UserError: a process or node was lost, again and again.
    """
    try:
        yield
    except RayTaskError:  # the task failed, but its process is alive
        raise
    except RayError as error:
        remedy = "the same command tries again; a lost node is in `ray status`"
        raise UserError([Fault(what, f"lost its process: {first_line(error)}", remedy)]) from error
