"""The hosts of packed trials: how many fit the cluster, and how many slots each has."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, Literal

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
from tune.cluster.packed_recipes import PackedRecipes, largest_in_slots, packed_recipes
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

logger = logging.getLogger(__name__)

_LOAD_S = 10.0
_REST_S = 5.0
_NO_ROOM = (
    "beside a trial of {recipe} the cluster has no room for a slot host; sweep it under a name of "
    "its own (search.{recipe}=null takes it out here) and compare both in one report"
)


class HostPool(SweepListener):
    """The slot hosts of a sweep's packed trials, if it has any; they end with the context.

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
        self._packed = packed_recipes(config)
        self._held = held_by_host(config, self._packed.names, cluster)
        self._waiting, self._tell = dict(waiting), tell
        self._actors: tuple[Any, ...] = ()
        self._slots = 1
        self._process_seconds: Any = None
        self._has_reported = False

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
        """Hosts that accept trials; None if each of the sweep's trials trains by itself.

        `samples`: how many a trial trains on.

        Raises:
            UserError: the model cannot be loaded, or lacks a target module.
        """
        if not self.start():
            return None
        largest = largest_point(self._config, largest_in_slots(self._config, self._packed.names))
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
            wanted = self._wanted_slots
            self._slots = wanted if wanted != "auto" else self._measured(trial, samples)
        self._start_for(self._slots)
        return SlotHosts(self._actors, self._slots, self._packed.names)

    def start(self) -> bool:
        """Start the hosts unless they are up; return whether there are any."""
        self._tell_who_is_alone()
        if self._actors or not self._packed.names:
            return bool(self._actors)
        if reason := self._why_no_room():
            self._give_up(reason)
            return False
        self._start_for(at_once(self._config))
        if self._wanted_slots == "auto":
            measure = as_task(trial_process_seconds, self._waiting)
            self._process_seconds = measure.remote()
        return True

    @property
    def _wanted_slots(self) -> int | Literal["auto"]:
        return self._config.recipe_resources(self._packed.names[0]).slots

    def _why_no_room(self) -> str | None:
        config, packed, nodes = self._config, self._packed.names, nodes_up()
        for recipe in config.search.recipes:
            is_alone = recipe not in packed
            if is_alone and not hosts_beside(config, packed, recipe, self._cluster, nodes):
                return _NO_ROOM.format(recipe=recipe)
        return None

    def trial_ended(self, record: TrialRecord) -> None:
        """Release the trial from its host, which would wait minutes for a process that has died."""
        if record.config.recipe in self._packed.names:
            for actor in self._actors:
                actor.leave.remote(record.config.trial_id)

    trial_interrupted = trial_ended

    def _start_for(self, slots: int) -> None:
        """Start the hosts still needed if each has this many slots."""
        nodes = nodes_up()
        fits = hosts_that_fit(self._config, self._packed.names, self._cluster, nodes)
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
        self._packed = PackedRecipes(alone=dict.fromkeys(self._packed.names, reason))
        self._has_reported = False
        self._tell_who_is_alone()
        self._kill()

    def _tell_who_is_alone(self) -> None:
        if not self._has_reported:
            self._has_reported = True
            for message in self._packed.messages():
                self._warn(message)

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
            field = self._config.resources_field(self._packed.names[0])
            self._warn(
                f"{hosts} hosts of 1 slot, as the host that measured more lost its process each "
                f"time ({first_line(error)}); {field}.slots sets how many"
            )
            return 1
        if not speeds:  # trials then halve their micro-batches
            self._warn(f"{hosts} hosts of 1 slot: memory runs out at the largest trial's batch")
            return 1
        slots = best(speeds, *costs)
        measured = ", ".join(f"{s.slots}: {s.passes_per_second:.1f}/s" for s in speeds)
        logger.info("%d hosts of %d slots (passes by slots: %s)", hosts, slots, measured)
        return slots


def held_by_host(
    config: SweepConfig, packed: Sequence[str], cluster: dict[str, float]
) -> dict[str, float]:
    """What a host of these recipes holds: as a worker of any of them, as they agree."""
    return held_by_worker(config, packed[0], cluster) if packed else {}


def hosts_that_fit(
    config: SweepConfig,
    packed: Sequence[str],
    cluster: dict[str, float],
    nodes: Sequence[Mapping[str, float]],
) -> int:
    """Hosts that fit in parallel, next to a trial of any recipe that is not packed.

    Args:
        config: the sweep.
        packed: the recipes that are.
        cluster: resources of the cluster by kind, at the largest that it may grow to.
        nodes: resources of each node that is up.
    """
    most = min(at_once(config), workers_in(held_by_host(config, packed, cluster), cluster))
    others = (recipe for recipe in config.search.recipes if recipe not in packed)
    beside = (hosts_beside(config, packed, recipe, cluster, nodes) for recipe in others)
    return min([most, *beside])


def hosts_beside(
    config: SweepConfig,
    packed: Sequence[str],
    recipe: str,
    cluster: dict[str, float],
    nodes: Sequence[Mapping[str, float]],
) -> int:
    """The same next to a trial of one other recipe."""
    host, trial = held_by_host(config, packed, cluster), held_by_trial(config, recipe, cluster)
    most = max(0, min(at_once(config), workers_in(host, _without(cluster, trial))))
    if any(cluster.get(kind, 0.0) > sum(node.get(kind, 0.0) for node in nodes) for kind in trial):
        return most
    worker = held_by_worker(config, recipe, cluster)
    workers = config.recipe_resources(recipe).workers
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
        to_repeat = planned_repeats(config.confirm, planned, len(config.search.recipes))
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


def beside_hosts(
    config: SweepConfig, packed: Sequence[str], cluster: dict[str, float], hosts: int
) -> dict[str, float]:
    """What slot hosts of these recipes leave of a cluster for trials that train on their own."""
    return _beside(hosts, held_by_host(config, packed, cluster), cluster)


def _beside(hosts: int, host: Mapping[str, float], room: Mapping[str, float]) -> dict[str, float]:
    return _without(room, {kind: hosts * amount for kind, amount in taken_up(host)})


def _without(room: Mapping[str, float], held: Mapping[str, float]) -> dict[str, float]:
    return {**room, **{kind: room.get(kind, 0.0) - amount for kind, amount in held.items()}}
