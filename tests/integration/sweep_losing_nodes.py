"""A sweep of one trial on a cluster of hosts on this machine, some of which are lost.

    python sweep_losing_nodes.py trials|groups FOLDER BASE_CACHE OVERRIDE...

A trial of one process loses its host after notice, and in its next attempt without. A group of
workers, each on a host of its own, loses one of these after notice, and in its next attempt the
host of the process that waits for them. Printed as JSON: the steps that each attempt measured, the
nodes of its processes, the nodes lost, and files in which the driver's hub token was found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
import ray
from ray.cluster_utils import Cluster

from trainables.records.schema import Measurement, TrialRecord
from tune.cluster.ray_cluster import ray_cluster
from tune.config.sweep_file import load_sweep
from tune.listeners import SweepListener
from tune.sweep import Sweep
from tune.tracking.wandb_listener import WandbListener

PROCESSES = ("ray::Implicit", "ray::Worker")  # how their names begin


class Loss(NamedTuple):
    """A host that a trial loses.

    Attributes:
        step: that the trial has measured then.
        how: `drain` or `kill`.
        process: whose host it is, one of `PROCESSES`; the last such process.
    """

    step: int
    how: str
    process: str = "ray::Implicit"


class Losses(SweepListener):
    """Takes a host from each attempt that there is a loss for, and records the attempts.

    Attributes:
        steps: that each attempt measured.
        nodes: of each attempt's processes.
        lost: ids of the nodes that were lost.
    """

    def __init__(self, cluster: Cluster, losses: list[Loss]) -> None:
        self._cluster, self._losses = cluster, dict(enumerate(losses, start=1))
        self.steps: dict[int, list[int]] = {}
        self.nodes: dict[int, dict[int, str]] = {}
        self.lost: list[str] = []

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        steps = self.steps.setdefault(record.attempt, [])
        steps.append(measurement.step)
        if len(steps) == 1:
            hosts = {pid: host for name in PROCESSES for pid, host in self.hosts(name).items()}
            self.nodes[record.attempt] = {pid: host.node_id for pid, host in hosts.items()}
        loss = self._losses.get(record.attempt)
        if loss and loss.step == measurement.step:
            *_, host = self.hosts(loss.process).values()
            self.lost.append(host.node_id)
            getattr(self, loss.how)(host)

    def kill(self, host: Any) -> None:
        self._cluster.remove_node(host, allow_graceful=False)

    def drain(self, host: Any) -> None:
        notice = ["drain-node", "--address", self._cluster.address, "--node-id", host.node_id]
        notice += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        notice += ["--deadline-remaining-seconds", "120"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *notice], check=True)

    def hosts(self, name: str) -> dict[int, Any]:
        """Hosts of the processes of a name, by the processes' ids."""
        raylets = {
            host.all_processes["raylet"][0].process.pid: host for host in self._cluster.worker_nodes
        }
        return {
            process.pid: raylets[process.info["ppid"]]
            for process in psutil.process_iter(["ppid", "name"])
            if process.info["ppid"] in raylets and process.info["name"].startswith(name)
        }


CORE, WAITING = {"num_cpus": 1}, {"num_cpus": 0, "resources": {"driver": 1}}
# Hosts beside the head, and what each attempt loses.
KINDS: dict[str, tuple[list[dict[str, Any]], list[Loss]]] = {
    "trials": ([CORE] * 3, [Loss(20, "drain"), Loss(40, "kill")]),
    "groups": ([CORE] * 3 + [WAITING] * 2, [Loss(20, "drain", "ray::Worker"), Loss(65, "drain")]),
}


def main(kind: str, folder: str, base_cache: str, *overrides: str) -> None:
    hosts, losses = KINDS[kind]
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for host in hosts:
        cluster.add_node(**host)
    token = os.environ["HF_TOKEN"] = f"hf_{uuid4().hex}"  # the cluster is up, and has none
    seen = Losses(cluster, losses)
    with ray_cluster(cluster.address):
        config = load_sweep("quickstart", list(overrides))
        sweep = Sweep(config, Path(folder), Path(base_cache))
        sweep.run([seen, WandbListener(config.wandb, Path(folder))])
    session = Path(cluster.head_node.get_session_dir_path())
    cluster.shutdown()
    ray.shutdown()
    written = [file for place in (session, Path(folder)) for file in place.rglob("*")]
    assert any("wandb" in str(file) for file in written)
    found = [str(f) for f in written if f.is_file() and token.encode() in f.read_bytes()]
    report = {"steps": seen.steps, "nodes": seen.nodes, "lost": seen.lost, "token": found}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
