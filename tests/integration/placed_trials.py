"""Where Tune puts trials of several workers, on nodes that only pretend to have GPUs.

    python placed_trials.py NODES GPUS_PER_NODE WORKERS...

Runs a trial for each number of workers, in this order, and prints as JSON, for each trial, on how
many nodes its workers lay, and of which types their GPUs are, and how many placement groups are
left at the end. Every other node has GPUs of type A, the others of B; where GPU_TYPE names one of
them all trials ask for it. A driver of its own,
since a process knows one cluster.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import ray
from ray import tune
from ray.cluster_utils import Cluster

from trainables.config import TrialConfig
from trainables.workers.gpu_types import gpu_types, kind_of
from tune.resources.placement import Placement

CPUS_OF_THE_HEAD = 1


def trial(config: dict[str, Any]) -> None:
    """Tells where the bundles of its workers lie, and holds them for a while."""
    group = ray.util.get_current_placement_group()
    bundles = ray.util.placement_group_table(group)["bundles_to_node_id"]
    workers = [bundles[index + 1] for index in range(config["trial"]["workers"])]
    time.sleep(0.2)
    types = {t for n in ray.nodes() if n["NodeID"] in workers for t in gpu_types(n["Resources"])}
    tune.report({"workers": len(workers), "nodes": len(set(workers)), "types": sorted(types)})


def main(nodes: int, gpus: int, workers: list[int]) -> None:
    """Start the cluster, run the trials, print what came of it."""
    head = {"num_cpus": CPUS_OF_THE_HEAD, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for index in range(nodes):
        of_type = {f"accelerator_type:{'AB'[index % 2]}": 1}
        cluster.add_node(num_cpus=gpus, num_gpus=gpus, resources=of_type)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    template = TrialConfig.model_validate_json(sys.stdin.read()).model_dump(mode="json")
    space = [template | {"workers": count, "gpus_per_worker": 1} for count in workers]
    held = {"CPU": 1.0, "GPU": 1.0}
    if gpu_type := os.environ.get("GPU_TYPE"):
        held[kind_of(gpu_type)] = 1.0
    placement = Placement({"memory": 1 << 20}, {"full": held}, slots=0)
    results = tune.Tuner(
        tune.with_resources(trial, placement),
        param_space={"trial": tune.grid_search(space)},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=mkdtemp(), name="placed", verbose=0),
    ).fit()
    assert not results.errors
    alive = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    placed = [[r.metrics["workers"], r.metrics["nodes"], r.metrics["types"]] for r in results]
    Path(os.environ["PLACED"]).write_text(json.dumps({"placed": placed, "left": len(alive)}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), [int(count) for count in sys.argv[3:]])
