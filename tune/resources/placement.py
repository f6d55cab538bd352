"""Where trials run: what Tune reserves for each, and which fit in parallel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune import PlacementGroupFactory

from trainables.config import TrialConfig
from trainables.packing.planning import is_packed
from trainables.workers.gpu_types import SMALLEST_SHARE, reserved, type_in_kind
from tune.resources.capacity import taken_up

DRIVER = "driver"  # the cluster files give it to the head node, which is never a spot node
_SLIVER_OF_MEMORY = 1 << 20
_ROUNDING = 1e-6
_SLOT = "slot"
# Among so many one of another pool is likely; more would be drawn without results to learn from.
_MOST_WAITING = 8


def beside_driver() -> dict[str, float]:
    """Resources that pin a waiting process to the driver's node, or without one to any node."""
    return {DRIVER: SMALLEST_SHARE} if _driver_nodes() else {"memory": _SLIVER_OF_MEMORY}


def driver_warning() -> str | None:
    """A warning if this process's node has no `driver` resource and others have."""
    nodes = _driver_nodes()
    if not nodes or ray.get_runtime_context().get_node_id() in nodes:
        return None
    return (
        "this command runs on a node that may be taken away, as it has no `driver` resource: start "
        "it on the head, or give `ray job submit` --entrypoint-resources '{\"driver\": 0.01}'"
    )


def _driver_nodes() -> set[str]:
    """Ids of the nodes that have the `driver` resource."""
    return {
        node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(DRIVER)
    }


@dataclass(frozen=True)
class Placement:
    """What Tune reserves for each trial.

    Attributes:
        waiting: what a process reserves that only waits for its workers or slot host.
        held: what a worker of each recipe holds, by kind of resource.
        slots: how many trials may train in slots; 0 if each trains by itself.
        packed: the recipes whose trials do.
    """

    waiting: Mapping[str, float]
    held: Mapping[str, Mapping[str, float]]
    slots: int = 0
    packed: Collection[str] = ()

    def __call__(self, config: dict[str, Any]) -> PlacementGroupFactory:
        """The placement group of a trial: its process's bundle first, then its workers'.

        It is placed as a whole or not at all, so that the autoscaler sees the whole demand.
        """
        trial = TrialConfig.model_validate(config["trial"])
        if is_packed(trial, self.packed):
            return PlacementGroupFactory([dict(self.waiting)])
        worker = reserved(self.held[trial.recipe])
        if trial.workers == 1:
            return PlacementGroupFactory([worker])
        workers = [worker] * trial.workers
        return PlacementGroupFactory([dict(self.waiting), *workers], strategy="PACK")

    def holds(self, trial: TrialConfig) -> dict[str, float]:
        """What a trial holds, by kind: a slot, or what all its workers take up."""
        if is_packed(trial, self.packed):
            return {_SLOT: 1}
        return {kind: each * trial.workers for kind, each in taken_up(self.held[trial.recipe])}

    def pool(self, recipe: str) -> str:
        """Name of what a recipe's trials compete for: slots, GPUs of a type, or anything."""
        if recipe in self.packed:
            return "slots"
        return next(filter(None, map(type_in_kind, self.held[recipe])), "")


class Room:
    """Keeps running trials within the resources `available` beside slot hosts.

    Trials of a pool start in the order in which they were drawn: otherwise small trials would keep
    overtaking one that needs many GPUs.
    """

    def __init__(self, available: Mapping[str, float], placement: Placement) -> None:
        self._available = {**available, _SLOT: placement.slots}
        self._placement = placement
        self._held: dict[int, Mapping[str, float]] = {}
        pools = {placement.pool(recipe) for recipe in placement.held}
        of_types = sum(amount for kind, amount in available.items() if type_in_kind(kind))
        is_limited = available.get("GPU", 0.0) < of_types  # by `max_gpus`, which all types share
        # A recipe without a GPU type trains on CPUs, also on those beside the others' GPUs.
        are_apart = "slots" in pools or ("" not in pools and not is_limited)
        self._has_pools = len(pools) > 1 and are_apart

    @property
    def most_waiting(self) -> int:
        """How many trials to draw at most while none of them has room."""
        return _MOST_WAITING if self._has_pools else 1

    def queue(self, trial: TrialConfig) -> str:
        """Name of the queue in which a trial waits for those drawn before it."""
        return self._placement.pool(trial.recipe) if self._has_pools else ""

    def take(self, trial: TrialConfig) -> bool:
        """Admit a trial if there is room, as there always is when no other runs."""
        wanted = self._placement.holds(trial)
        if self._held and any(
            self._in_use(kind) + amount > self._available.get(kind, 0) + _ROUNDING
            for kind, amount in wanted.items()
        ):
            return False
        self._held[trial.number] = wanted
        return True

    def give_back(self, number: int) -> None:
        """Release what a trial held, as it no longer runs."""
        self._held.pop(number, None)

    def _in_use(self, kind: str) -> float:
        return sum(held.get(kind, 0) for held in self._held.values())
