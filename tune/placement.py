"""What Tune reserves for a trial: one placement group, made and removed with its process."""

from __future__ import annotations

from typing import Any

from ray.tune import PlacementGroupFactory

from trainables.config import TrialConfig
from trainables.slots.eligibility import reason_against

# For a process that only waits, for its workers or for the host of its slot. It must be something
# that every node has.
_WAITS = {"memory": 1 << 20}


def placement(has_slots: bool, config: dict[str, Any]) -> PlacementGroupFactory:
    """Bundles of the trial `config["trial"]`; those of its workers follow that of its process.

    Workers lie on as few nodes as have room. All are there or none is, so trials that wait for
    room hold nothing that others wait for, and the autoscaler sees all that they ask for.

    Args:
        has_slots: LoRA trials train in slots where they can.
        config: what Tune runs the trial with.
    """
    trial = TrialConfig.model_validate(config["trial"])
    if has_slots and not reason_against(trial):
        return PlacementGroupFactory([_WAITS])
    worker = {"CPU": trial.cpus_per_worker}
    if trial.gpus_per_worker:
        worker["GPU"] = trial.gpus_per_worker
    if trial.workers == 1:
        return PlacementGroupFactory([worker])
    return PlacementGroupFactory([_WAITS, *[worker] * trial.workers], strategy="PACK")
