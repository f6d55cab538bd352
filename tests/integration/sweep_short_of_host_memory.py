"""A sweep of one trial whose process takes memory until Ray kills it, in its first attempt.

    python sweep_short_of_host_memory.py FOLDER BASE_CACHE OVERRIDE...

Printed is what became of the trial, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import ray.tune
from ray._private.utils import get_system_memory, get_used_memory

from trainables.config import TrialConfig
from trainables.records.schema import Measurement, Outcome, TrialStatus
from trainables.workers.reporters import MEASUREMENT, OUTCOME
from tune.cluster.ray_cluster import ray_cluster
from tune.config.sweep_file import load_sweep
from tune.sweep import Sweep

GIB = 1 << 30
LEFT = 3 * GIB  # for the cluster, the base's evaluation and then the trial
PIECE = 64 << 20


def greedy_trial(config: dict[str, Any]) -> None:
    """Takes twice what is left, unless an earlier attempt did."""
    trial = TrialConfig.model_validate(config["trial"])
    taken = []
    while not trial.earlier_attempts and len(taken) * PIECE < 2 * LEFT:
        taken.append(bytearray(b"x") * PIECE)
        time.sleep(0.1)
    measured = Measurement(step=1, total_steps=1, metrics={"train/loss": 1.0}, time=time.time())
    ray.tune.report({MEASUREMENT: measured.model_dump()})
    done = Outcome(status=TrialStatus.COMPLETE, weights_dir=None)
    ray.tune.report({OUTCOME: done.model_dump(mode="json")})


def used() -> int:
    """As Ray counts: of the container where that has a limit, else of the machine."""
    machine = psutil.virtual_memory()
    if get_system_memory() < machine.total:
        return int(get_used_memory())
    return int(machine.total - machine.available)


def main(folder: str, base_cache: str, *overrides: str) -> None:
    os.environ |= {"RAY_memory_usage_threshold": f"{(used() + LEFT) / get_system_memory():.6f}"}
    with ray_cluster(None):
        config = load_sweep("quickstart", list(overrides))
        outcome = Sweep(config, Path(folder), Path(base_cache), trainable=greedy_trial).run([])
    (record,) = outcome.records
    print(json.dumps([record.status, record.attempt, record.failures]))


if __name__ == "__main__":
    main(*sys.argv[1:])
