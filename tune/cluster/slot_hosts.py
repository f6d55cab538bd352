"""The hosts of packed LoRA trials: how many fit the cluster, and how many slots each has."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError

from analysis.results.confirmation import planned_repeats, repeats_to_begin
from trainables.config import TrialConfig
from trainables.errors import first_line
from trainables.packing.planning import best
from trainables.records.schema import TrialRecord
from trainables.workers.packed_trials import SlotHosts, start_slot_host
from trainables.workers.ray_tasks import as_task
from trainables.workers.trainable import trial_process_seconds
from tune.cluster.node_checks import nodes_up
from tune.cluster.ray_cluster import usable_cpus
from tune.cluster.waiting import answer_of, answering
from tune.config.sweep_config import SweepConfig
from tune.listeners import SweepListener
from tune.resources.capacity import (
    held_by_trial,
    held_by_worker,
    taken_up,
    workers_in,
    workers_on,
)
from tune.search.searcher import MakeTrial
from tune.search.space import largest_point, planned_trials
from tune.search.trial_ids import why_no_trial_is_packed

logger = logging.getLogger(__name__)

_LOAD_S = 10.0
_REST_S = 5.0
_NO_ROOM = (
    "beside a full fine-tuning trial the cluster has no room for a slot host; sweep the "
    "methods one by one (search.full=null, then search.lora=null, under two names) and compare "
    "both in one report"
)


class HostPool(SweepListener):
    """The slot hosts of a sweep's LoRA trials, if they are packed; they end with the context.

    Args:
        config: the sweep; its budget is what is still to run.
        cluster: resources of the cluster by kind.
        make_trial: the sweep's function that configures a trial.
        waiting: what a trial in a slot reserves for its own process.
        tell: called with each line that the user should see.
    """

    def __init__(
        self,
        config: SweepConfig,
        cluster: dict[str, float],
        make_trial: MakeTrial,
        waiting: Mapping[str, float],
        tell: Callable[[str], None],
    ) -> None:
        self._config, self._cluster, self._make_trial = config, cluster, make_trial
        self._held = held_by_worker(config, "lora", cluster)
        self._waiting, self._tell = dict(waiting), tell
        self._actors: tuple[Any, ...] = ()
        self._slots = 1
        self._process_seconds: Any = None
        self._is_wanted = "lora" in config.search.methods and config.resources.lora.slots != 0

    def __enter__(self) -> HostPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        else:
            self._kill()

    def evaluate_base(self, *arguments: Any) -> Any:
        """The result of `evaluate_base_on_worker` in the first host; call after `start`."""
        return self._answer("evaluate_base", *arguments)

    def _answer(self, method: str, *arguments: Any) -> Any:
        return answer_of(self._actors, method, arguments, self._held, self._tell)

    def ready(self, samples: int) -> SlotHosts | None:
        """Hosts that accept trials; None if each of the sweep's LoRA trials trains by itself.

        `samples`: how many a trial trains on.

        Raises:
            UserError: the model cannot be loaded, or lacks a target module.
        """
        if not self.start():
            return None
        largest = largest_point(self._config, "lora")
        trial = self._make_trial(0, largest, 1, self._config.seed)
        with answering("a slot host"):
            if reason := self._answer("why_not_packed", trial):
                self._give_up(reason)
                return None
            # The first host's node, if newly started, has more room.
            self._start_for(at_once(self._config))
            answers = [actor.why_not_packed.remote(trial) for actor in self._actors]
            # All load the model now, except those whose nodes are not up yet.
            ray.wait(answers, num_returns=len(answers), timeout=_LOAD_S)
            wanted = self._config.resources.lora.slots
            self._slots = wanted if wanted != "auto" else self._measured(trial, samples)
        self._start_for(self._slots)
        return SlotHosts(self._actors, self._slots)

    def start(self) -> bool:
        """Start the hosts unless they are up; return whether there are any."""
        config = self._config
        if self._actors or not self._is_wanted:
            return bool(self._actors)
        fits = hosts_that_fit(config, self._cluster, nodes_up())
        if reason := why_no_trial_is_packed(config) or (None if fits else _NO_ROOM):
            self._give_up(reason)
            return False
        self._start_for(at_once(config))
        if config.resources.lora.slots == "auto":
            measure = as_task(trial_process_seconds, self._waiting)
            self._process_seconds = measure.remote()
        return True

    def trial_ended(self, record: TrialRecord) -> None:
        """Release the trial from its host, which would wait minutes for a process that has died."""
        if record.config.method == "lora":
            for actor in self._actors:
                actor.leave.remote(record.config.trial_id)

    trial_interrupted = trial_ended

    def _start_for(self, slots: int) -> None:
        """Start the hosts still needed if each has this many slots."""
        nodes = nodes_up()
        fits = hosts_that_fit(self._config, self._cluster, nodes)
        up = workers_on(self._held, nodes)
        wanted = hosts_to_start(fits, up, at_once(self._config), slots)
        started = [start_slot_host(self._held) for _ in range(wanted - len(self._actors))]
        for actor in started:
            actor.load_libraries.remote()
        self._actors = (*self._actors, *started)

    def close(self) -> None:
        """End the hosts once the trials stopped last have left them."""
        with suppress(RayError):
            ray.get([actor.at_rest.remote() for actor in self._actors], timeout=_REST_S)
        self._kill()

    def _kill(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = ()

    def _give_up(self, reason: str) -> None:
        self._warn(f"each LoRA trial trains by itself: {reason}")
        self._is_wanted = False
        self._kill()

    def _warn(self, message: str) -> None:
        logger.warning(message)
        self._tell(f"warning: {message}")

    def _measured(self, trial: TrialConfig, samples: int) -> int:
        """The number of slots with which the trials finish soonest, measured on one host."""
        config, hosts = self._config, len(self._actors)
        steps = trial.train.total_steps(samples) * math.ceil(config.budget.trials / hosts)
        # Processes start in parallel beside the driver, on CPUs that a cloud's head does not count.
        cpus = min(usable_cpus(), self._cluster["CPU"])
        process_seconds = ray.get(self._process_seconds) * hosts / cpus
        costs = steps * trial.accumulation_steps, process_seconds
        most = math.ceil(at_once(config) / hosts)
        try:
            speeds = self._answer("probe", trial, most, *costs)
        except (ActorUnavailableError, OutOfMemoryError) as error:  # each time it was asked
            self._warn(
                f"{hosts} hosts of 1 slot, as the host that measured more lost its process each "
                f"time ({first_line(error)}); resources.lora.slots sets how many"
            )
            return 1
        if not speeds:  # trials then halve their micro-batches
            self._warn(f"{hosts} hosts of 1 slot: memory runs out at the largest trial's batch")
            return 1
        slots = best(speeds, *costs)
        measured = ", ".join(f"{s.slots}: {s.passes_per_second:.1f}/s" for s in speeds)
        logger.info("%d hosts of %d slots (passes by slots: %s)", hosts, slots, measured)
        return slots


def hosts_that_fit(
    config: SweepConfig, cluster: dict[str, float], nodes: Sequence[Mapping[str, float]]
) -> int:
    """Hosts that fit in parallel, next to a full fine-tuning trial if the sweep has any.

    Args:
        config: the sweep.
        cluster: resources of the cluster by kind, at the largest that it may grow to.
        nodes: resources of each node that is up.
    """
    host, most = held_by_worker(config, "lora", cluster), at_once(config)
    if "full" not in config.search.methods:
        return min(most, workers_in(host, cluster))
    trial = held_by_trial(config, "full", cluster)
    most = max(0, min(most, workers_in(host, _without(cluster, trial))))
    if any(cluster.get(kind, 0.0) > sum(node.get(kind, 0.0) for node in nodes) for kind in trial):
        return most
    worker, workers = held_by_worker(config, "full", cluster), config.resources.full.workers
    room = _workers_beside(most, host, worker, nodes)
    return max(hosts for hosts in range(most + 1) if not hosts or room.get(hosts, 0) >= workers)


def _workers_beside(
    most: int,
    host: Mapping[str, float],
    worker: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]],
) -> dict[int, int]:
    """Workers for which there is room beside so many hosts, on whichever nodes Ray puts these."""
    fewest = {0: 0}
    for node in nodes:
        room = [
            workers_in(worker, _beside(n, host, node)) for n in range(workers_in(host, node) + 1)
        ]
        after: dict[int, int] = {}
        for (hosts, workers), (here, more) in product(fewest.items(), enumerate(room)):
            if hosts + here <= most:
                after[hosts + here] = min(workers + more, after.get(hosts + here, sys.maxsize))
        fewest = after
    return fewest


def with_trials_left(config: SweepConfig, finished: Sequence[TrialRecord]) -> SweepConfig:
    """The sweep whose budget is the trials that it still has to run; repeats come after them.

    A search that goes on may find other winners, of which none is repeated yet.
    """
    planned = planned_trials(config)
    to_search = planned - sum(record.confirms is None for record in finished)
    if to_search > 0:
        to_repeat = planned_repeats(config.confirm, planned)
    else:
        to_repeat = repeats_to_begin(config, finished)
    left = max(1, to_search, to_repeat)
    return config.model_copy(update={"budget": config.budget.model_copy(update={"trials": left})})


def at_once(config: SweepConfig) -> int:
    """Number of trials in parallel, hence the most slots a host can use."""
    trials = config.budget.trials
    return min(trials, config.resources.max_concurrent or trials)


def hosts_to_start(fits: int, up: int, at_once: int, slots: int) -> int:
    """All hosts that fit nodes that are up; on further nodes, only as many as trials fill.

    Args:
        fits: hosts that fit the cluster at its largest.
        up: hosts for which there is room on nodes that are up.
        at_once: number of trials in parallel.
        slots: slots per host.
    """
    return min(fits, max(up, math.ceil(at_once / slots)))


def beside_hosts(config: SweepConfig, cluster: dict[str, float], hosts: int) -> dict[str, float]:
    """What slot hosts leave of a cluster for trials that train on their own."""
    return _beside(hosts, held_by_worker(config, "lora", cluster), cluster)


def _beside(hosts: int, host: Mapping[str, float], room: Mapping[str, float]) -> dict[str, float]:
    return _without(room, {kind: hosts * amount for kind, amount in taken_up(host)})


def _without(room: Mapping[str, float], held: Mapping[str, float]) -> dict[str, float]:
    return {**room, **{kind: room.get(kind, 0.0) - amount for kind, amount in held.items()}}
