"""Waits for an answer from the cluster, or for room for a trial, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from trainables.config import TrialConfig
from trainables.errors import Fault, UserError, first_line
from trainables.workers.packed_trials import SlotHosts, life_of
from trainables.workers.trial_outcome import LOST
from tune.cluster.cloud import last_launch_failure
from tune.cluster.node_checks import nodes_up
from tune.resources.capacity import amounts_text, workers_on

_TELL_EVERY_S = 30.0
_POLL_S = 1.0
_MOST_LOST_PROCESSES = 3


def awaited(answer: Any, held: Mapping[str, float], tell: Callable[[str], None]) -> Any:
    """The answer; while no node has room for what its process holds, says so repeatedly."""
    while not ray.wait([answer], timeout=_TELL_EVERY_S)[0]:
        _report_wait(held, tell)
    return ray.get(answer)


def answer_of(
    hosts: Sequence[Any],
    method: str,
    arguments: tuple[Any, ...],
    held: Mapping[str, float],
    tell: Callable[[str], None],
) -> Any:
    """The first slot host's answer; if its process is lost, that of one that is up.

    It is asked up to three times more. Ray's own retries would be over before a new process, let
    alone another node, is up.

    Raises:
        RayActorError, OutOfMemoryError: a process was lost each time, or is lost for good.
    """
    host = hosts[0]
    for _ in range(_MOST_LOST_PROCESSES):
        try:
            return awaited(getattr(host, method).remote(*arguments), held, tell)
        except LOST as error:
            if life_of(host)[0] == "DEAD":
                raise
            tell(f"the process of a slot host was lost ({first_line(error)}); trying again")
        host = _first_up(hosts, held, tell)
    return awaited(getattr(host, method).remote(*arguments), held, tell)


def _first_up(hosts: Sequence[Any], held: Mapping[str, float], tell: Callable[[str], None]) -> Any:
    """The first host whose process answers, or one that is dead or dies again and again."""
    reported = time.monotonic()
    before = [life_of(host)[1] for host in hosts]
    while True:
        for host, restarts in zip(hosts, before, strict=True):
            state, restarted = life_of(host)
            if state == "ALIVE":
                with suppress(*LOST):  # Ray may not have noticed yet that its node is gone
                    ray.get(host.load.remote())
                    return host
            is_dead = state == "DEAD" and len(hosts) == 1
            if is_dead or restarted > restarts + _MOST_LOST_PROCESSES:
                return host
        if time.monotonic() - reported > _TELL_EVERY_S:
            _report_wait(held, tell)
            reported = time.monotonic()
        time.sleep(_POLL_S)


class WaitForRoom(Callback):
    """Tune callback that repeatedly says what the sweep waits for while no trial can train.

    Args:
        held: what a worker of each recipe holds, by kind of resource.
        hosts: in which packed trials train; None if each has a process of its own.
        tell: called with what the user should know.
    """

    def __init__(
        self,
        held: Mapping[str, Mapping[str, float]],
        hosts: SlotHosts | None,
        tell: Callable[[str], None],
    ) -> None:
        self._held, self._hosts, self._tell = held, hosts, tell
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that never happens."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Check, now and then, whether no trial trains and the nodes have no room for the next."""
        now = time.monotonic()
        if now - self._looked < _TELL_EVERY_S:
            return
        self._looked = now
        unfinished = [trial for trial in trials if trial.status in (Trial.RUNNING, Trial.PENDING)]
        if not unfinished or any(map(self._trains, unfinished)):
            return
        trial = _config(unfinished[0])
        _report_wait(self._held[trial.recipe], self._tell, trial.workers)

    def _trains(self, trial: Trial) -> bool:
        """Whether a trial trains: to Tune, one in a slot also runs while no host has a process."""
        if trial.status != Trial.RUNNING:
            return False
        if self._hosts is None or not self._hosts.train(_config(trial)):
            return True
        return any(life_of(actor)[0] == "ALIVE" for actor in self._hosts.actors)


def _config(trial: Trial) -> TrialConfig:
    return TrialConfig.model_validate(trial.config["trial"])


def _report_wait(held: Mapping[str, float], tell: Callable[[str], None], workers: int = 1) -> None:
    wanted = {kind: amount for kind, amount in held.items() if amount}
    if workers_on(wanted, nodes_up()) < workers:  # however busy they are
        failure = last_launch_failure()
        tell(f"waiting for a node with {amounts_text(wanted)}{f': {failure}' if failure else ''}")


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Turn the loss of a process before the first trial into an error that says which it was.

    Raises:
        UserError: the process, or its node, was lost again and again.
    """
    try:
        yield
    except RayTaskError:  # the task failed, but its process is alive
        raise
    except RayError as error:
        remedy = "the same command tries again; a lost node is in `ray status`"
        rule = f"its worker process was lost: {first_line(error)}"
        raise UserError([Fault(what, rule, remedy)]) from error
