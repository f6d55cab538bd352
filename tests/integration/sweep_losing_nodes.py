"""A cluster of a head and two hosts on this machine, and four sweeps of one trial on it.

    python sweep_losing_nodes.py FOLDER BASE_CACHE OVERRIDE...

One sweep is undisturbed. From two the host of their trial is taken after notice, in one of them a
host of slots; from the last at once. Which steps each attempt measured is printed as JSON, and the
files in which the driver's hub token was found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import ray
from ray.cluster_utils import Cluster

from trainables.records import Measurement, TrialRecord
from tune.listeners import SweepListener
from tune.ray_cluster import ray_cluster
from tune.sweep import Sweep
from tune.sweep_file import load_sweep
from tune.wandb_listener import WandbListener

SWEEPS = (
    ("undisturbed", 0, "", 0),
    ("drained", 20, "drain", 0),
    ("drained in a slot", 20, "drain", 1),
    ("killed", 50, "kill", 0),
)
TRAINING = ("ray::Implicit", "ray::SlotHost")  # the last of them that there is, trains


class Losses(SweepListener):
    """Takes the host of the first attempt when that has measured a step."""

    def __init__(self, cluster: Cluster, step: int, how: str) -> None:
        self._cluster, self._step, self._how = cluster, step, how
        self.steps: dict[int, list[int]] = {}

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        self.steps.setdefault(record.attempt, []).append(measurement.step)
        if (record.attempt, measurement.step) == (1, self._step):
            getattr(self, self._how)(self._host())

    def kill(self, host: Any) -> None:
        self._cluster.remove_node(host, allow_graceful=False)

    def drain(self, host: Any) -> None:
        notice = ["drain-node", "--address", self._cluster.address, "--node-id", host.node_id]
        notice += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        notice += ["--deadline-remaining-seconds", "120"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *notice], check=True)

    def _host(self) -> Any:
        raylets = {
            host.all_processes["raylet"][0].process.pid: host for host in self._cluster.worker_nodes
        }
        trains = [
            process.info["ppid"]
            for name in TRAINING
            for process in psutil.process_iter(["ppid", "name"])
            if process.info["ppid"] in raylets and process.info["name"].startswith(name)
        ]
        return raylets[trains[-1]]


def token_of_worker() -> tuple[str | None, str | None]:
    """The hub's token in a worker before and after it asked for the driver's."""
    from huggingface_hub import get_token

    from trainables.under_ray.hub_token import use_hub_token

    before = get_token()
    use_hub_token()
    return before, get_token()


def main(folder: str, base_cache: str, *overrides: str) -> None:
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    token = os.environ["HF_TOKEN"] = f"hf_{uuid4().hex}"  # the cluster is up, and has none
    seen: dict[str, Any] = {}
    with ray_cluster(cluster.address):
        assert ray.get(ray.remote(token_of_worker).remote()) == (None, token)
        for name, step, how, slots in SWEEPS:
            config = load_sweep("quickstart", [*overrides, f"resources.lora.slots={slots}"])
            losses = Losses(cluster, step, how)
            sweep = Sweep(config, Path(folder) / name, Path(base_cache))
            sweep.run([losses, WandbListener(config.wandb, Path(folder) / name)])
            seen[name] = losses.steps
            if how == "drain":
                cluster.add_node(num_cpus=1)
    session = Path(cluster.head_node.get_session_dir_path())
    cluster.shutdown()
    written = [file for place in (session, Path(folder)) for file in place.rglob("*")]
    assert any("wandb" in str(file) for file in written)
    assert len(written) > 100
    found = [
        str(file) for file in written if file.is_file() and token.encode() in file.read_bytes()
    ]
    print(json.dumps({"token_found_in": found, "steps": seen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
