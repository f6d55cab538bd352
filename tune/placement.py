"""Where trials run: what Tune reserves for one, and which have room side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune import PlacementGroupFactory

from trainables.config import Method, TrialConfig
from trainables.slots.eligibility import reason_against
from trainables.under_ray.gpu_types import reserved

logger = logging.getLogger(__name__)

DRIVER = "driver"  # the cluster files give it to the head, which is never a spot node
_SLIVER = 1e-4  # the smallest share that Ray counts: one head bears ten thousand
_SLIVER_OF_MEMORY = 1 << 20
_ROUNDING = 1e-6


def beside_driver() -> dict[str, float]:
    """What to reserve for a thing that only waits and shall live where the driver does.

    Where no node has the `driver` resource, as on a laptop, it is something that every node has.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    of_drivers = {node["NodeID"] for node in nodes if node["Resources"].get(DRIVER)}
    if not of_drivers:
        return {"memory": _SLIVER_OF_MEMORY}
    if ray.get_runtime_context().get_node_id() not in of_drivers:
        logger.warning(
            "this command runs on a node that may be taken away, as it has no `driver` resource: "
            "start it on the head, or give `ray job submit` --entrypoint-resources "
            "'{\"driver\": 0.01}'"
        )
    return {DRIVER: _SLIVER}


@dataclass(frozen=True)
class Placement:
    """What Tune reserves for each trial.

    Attributes:
        waiting: what a trial function reserves that only waits: for its workers, or for its host
            of slots.
        held: what a worker of each method holds, by kind.
        has_slots: whether LoRA trials train in slots, where they can.
    """

    waiting: Mapping[str, float]
    held: Mapping[Method, Mapping[str, float]]
    has_slots: bool

    def __call__(self, config: dict[str, Any]) -> PlacementGroupFactory:
        """Bundles of a trial; those of its workers follow that of its process.

        Workers lie on as few nodes as have room. All are there or none is, so trials that wait for
        room hold nothing that others wait for, and the autoscaler sees all that they ask for.
        """
        trial = TrialConfig.model_validate(config["trial"])
        if self._is_in_slot(trial):
            return PlacementGroupFactory([dict(self.waiting)])
        worker = reserved(self.held[trial.method])
        if trial.workers == 1:
            return PlacementGroupFactory([worker])
        workers = [worker] * trial.workers
        return PlacementGroupFactory([dict(self.waiting), *workers], strategy="PACK")

    def holds(self, trial: TrialConfig) -> dict[str, float]:
        """What all workers hold, by kind; what a trial in a slot does is its host's."""
        if self._is_in_slot(trial):
            return {}
        return {kind: each * trial.workers for kind, each in self.held[trial.method].items()}

    def _is_in_slot(self, trial: TrialConfig) -> bool:
        return self.has_slots and not reason_against(trial)


class Room:
    """Keeps running trials within what they may hold together.

    Trials start in the order in which they were drawn. Where the next one has no room it waits,
    and so do those after it: one that asks for many GPUs would else wait for as long as there
    are small ones to overtake it.

    Args:
        available: amounts by kind, such as CPU and GPU.
        holds: what a trial takes of them.
    """

    def __init__(
        self,
        available: Mapping[str, float],
        holds: Callable[[TrialConfig], Mapping[str, float]],
    ) -> None:
        self._available = available
        self._holds = holds
        self._held: dict[int, Mapping[str, float]] = {}

    def take(self, trial: TrialConfig) -> bool:
        """Let a trial in, if there is room; where no other runs there always is."""
        wanted = self._holds(trial)
        if self._held and any(
            self._in_use(kind) + amount > self._available.get(kind, 0) + _ROUNDING
            for kind, amount in wanted.items()
        ):
            return False
        self._held[trial.number] = wanted
        return True

    def give_back(self, number: int) -> None:
        """A trial runs no more."""
        self._held.pop(number, None)

    def _in_use(self, kind: str) -> float:
        return sum(held.get(kind, 0) for held in self._held.values())
