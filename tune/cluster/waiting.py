"""Waiting for an answer from the cluster before the first trial, and saying so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from trainables.errors import Fault, UserError, first_line
from trainables.under_ray.autoscaler import last_failure
from tune.cluster.node_checks import nodes_up
from tune.resources.capacity import wording, workers_in

_TELL_EVERY_S = 30.0


def awaited(answer: Any, held: Mapping[str, float], tell: Callable[[str], None]) -> Any:
    """The answer; repeatedly tells what it waits for while no node could run what gives it.

    `held` is what is held by the process that gives it.
    """
    wanted = {kind: amount for kind, amount in held.items() if amount}
    while not ray.wait([answer], timeout=_TELL_EVERY_S)[0]:
        if not any(workers_in(wanted, node) for node in nodes_up()):  # however busy it is
            failure = last_failure(ray.get_runtime_context().gcs_address)
            tell(f"waiting for a node with {wording(wanted)}{f': {failure}' if failure else ''}")
    return ray.get(answer)


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Tell the user what to do if a process or node is lost before the first trial.

    Raises:
        UserError: a process or node was lost and Ray's retries failed.
    """
    try:
        yield
    except RayTaskError:  # the task failed, but its process is alive
        raise
    except RayError as error:
        remedy = "the same command tries again; a lost node is in `ray status`"
        raise UserError([Fault(what, f"lost its process: {first_line(error)}", remedy)]) from error
