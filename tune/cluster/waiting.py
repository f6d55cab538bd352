"""Waiting for an answer from the cluster, or for room for a trial, and saying so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from trainables.config import Method, TrialConfig
from trainables.errors import Fault, UserError, first_line
from trainables.workers.packed_trials import SlotHosts, has_process, life_of
from trainables.workers.trial_outcome import LOST
from tune.cluster.cloud import last_launch_failure
from tune.cluster.node_checks import nodes_up
from tune.resources.capacity import wording, workers_on

_TELL_EVERY_S = 30.0
_POLL_S = 1.0
_MOST_LOST_PROCESSES = 3
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
    hosts: Sequence[Any],
    method: str,
    arguments: tuple[Any, ...],
    held: Mapping[str, float],
    tell: Callable[[str], None],
) -> Any:
    """What the first host of slots answers; where it loses its process, another, or it once more.

    That is done up to three times. Ray's own retries would be over before a new process, let alone
    another node, is up.

    Raises:
        RayActorError, OutOfMemoryError: a process was lost each time, or is lost for good.
    """
    host = hosts[0]
    for _ in range(_MOST_LOST_PROCESSES):
        state, restarts = life_of(host)
        restarts -= state == "RESTARTING"  # Ray counts it as it begins
        try:
            return awaited(getattr(host, method).remote(*arguments), held, tell)
        except LOST:
            if life_of(host)[0] == "DEAD":
                raise
        tell("a host of slots lost its process; one that is up is asked again")
        host = _next_up(hosts, host, restarts, held, tell)
    return awaited(getattr(host, method).remote(*arguments), held, tell)


def _next_up(
    hosts: Sequence[Any],
    lost: Any,
    restarts: int,
    held: Mapping[str, float],
    tell: Callable[[str], None],
) -> Any:
    """The first host that is up; the lost one counts once it has another process.

    It counts, too, if it is dead for good, or again and again, or cannot have been lost.
    """
    started = told = time.monotonic()
    while True:
        now = time.monotonic()
        for host in hosts:
            state, known = life_of(host)
            is_another = host != lost or known > restarts or now - started > _UNNOTICED_S
            if (state == "ALIVE" and is_another) or (host == lost and state == "DEAD"):
                return host
            if host == lost and known > restarts + _MOST_LOST_PROCESSES:
                return host
        if now - told > _TELL_EVERY_S:
            _tell_of_wait(held, tell)
            told = now
        time.sleep(_POLL_S)


class WaitForRoom(Callback):
    """Tune callback that repeatedly tells what the sweep waits for while no trial can train.

    Args:
        held: what a worker of each method holds, by kind of resource.
        hosts: in which LoRA trials train; None if each has a process of its own.
        tell: called with what the user should know.
    """

    def __init__(
        self,
        held: Mapping[Method, Mapping[str, float]],
        hosts: SlotHosts | None,
        tell: Callable[[str], None],
    ) -> None:
        self._held, self._hosts, self._tell = held, hosts, tell
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that never happens."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look, now and then, whether no trial trains and the nodes have no room for the next."""
        now = time.monotonic()
        if now - self._looked < _TELL_EVERY_S:
            return
        self._looked = now
        unfinished = [trial for trial in trials if trial.status in (Trial.RUNNING, Trial.PENDING)]
        if not unfinished or any(map(self._trains, unfinished)):
            return
        trial = _config_of(unfinished[0])
        _tell_of_wait(self._held[trial.method], self._tell, trial.workers)

    def _trains(self, trial: Trial) -> bool:
        """Whether it does: to Tune, a trial of a slot also runs while no host has a process."""
        if trial.status != Trial.RUNNING:
            return False
        if self._hosts is None or _config_of(trial).method != "lora":
            return True
        return any(map(has_process, self._hosts.actors))


def _config_of(trial: Trial) -> TrialConfig:
    return TrialConfig.model_validate(trial.config["trial"])


def _tell_of_wait(held: Mapping[str, float], tell: Callable[[str], None], workers: int = 1) -> None:
    wanted = {kind: amount for kind, amount in held.items() if amount}
    if workers_on(wanted, nodes_up()) < workers:  # however busy they are
        failure = last_launch_failure()
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
