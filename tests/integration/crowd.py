"""One driver of a fake sweep whose full trials hold their workers' GPUs in one placement group.

    python crowd.py ADDRESS FOLDER BASE_CACHE OVERRIDE...

Prints what it leaves on the cluster: placement groups that are still there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
from fake_sweep import drive
from ray.tune import PlacementGroupFactory

from trainables.config import TrialConfig
from tune import sweep
from tune.placement import Placement


class Grouped(Placement):
    """All that a trial holds in its own group: its function, and each of its workers."""

    def __call__(self, config: dict[str, Any]) -> PlacementGroupFactory:
        trial = TrialConfig.model_validate(config["trial"])
        if trial.workers == 1:
            return super().__call__(config)
        worker = {"CPU": trial.cpus_per_worker, "GPU": trial.gpus_per_worker}
        return PlacementGroupFactory(
            [dict(self.waiting), *[worker] * trial.workers], strategy="PACK"
        )


if __name__ == "__main__":
    sweep.Placement = Grouped
    drive(*sys.argv[1:])
    groups = ray.util.placement_group_table().values()
    print(json.dumps([group["name"] for group in groups if group["state"] != "REMOVED"]))
