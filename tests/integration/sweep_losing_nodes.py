"""A cluster of a head and some hosts on this machine, and sweeps of one trial on it.

    python sweep_losing_nodes.py trials|groups FOLDER BASE_CACHE OVERRIDE...
    python sweep_losing_nodes.py request

One sweep is undisturbed. Where trials are one process their host is taken: from two after notice,
in one of them a host of slots; from the last at once. Where the trial is a group of workers, each
on a host of its own, one of these hosts is taken after notice, and from its next attempt that of
the process which waits for the workers. Printed as JSON is, for each sweep, which steps each
attempt measured, which processes it had on which nodes, and which nodes were taken; and the files
in which the driver's hub token was found.

Without a sweep it is the node of the actor on which trials wait for a request to stop that is
taken, at once. Printed is whether a drain that follows is noticed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
import ray
from ray.cluster_utils import Cluster

from trainables.records.schema import Measurement, TrialRecord
from trainables.workers.stop_request import StopRequest
from tune.cluster.ray_cluster import ray_cluster
from tune.config.sweep_file import load_sweep
from tune.listeners import SweepListener
from tune.resources.placement import beside_driver
from tune.sweep import Sweep
from tune.tracking.wandb_listener import WandbListener

PROCESSES = ("ray::Implicit", "ray::SlotHost", "ray::Worker")  # how their names begin
PATIENCE_S = 60.0


class Loss(NamedTuple):
    """A host that is taken from a trial.

    Attributes:
        step: that the trial has measured then.
        how: `drain` or `kill`.
        of: the process whose host it is, one of `PROCESSES`; the last that there is.
    """

    step: int
    how: str
    of: str = "ray::Implicit"


class Losses(SweepListener):
    """Takes a host from each attempt that there is a loss for, and looks at the trial.

    Attributes:
        steps: that each attempt measured.
        lay_on: each attempt's processes, and the ids of their nodes.
        taken: ids of the nodes that were.
    """

    def __init__(self, cluster: Cluster, losses: Iterable[Loss]) -> None:
        self._cluster, self._losses = cluster, dict(enumerate(losses, start=1))
        self.steps: dict[int, list[int]] = {}
        self.lay_on: dict[int, dict[int, str]] = {}
        self.taken: list[str] = []

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        steps = self.steps.setdefault(record.attempt, [])
        steps.append(measurement.step)
        if len(steps) == 1:
            self.lay_on[record.attempt] = {
                process: host.node_id
                for name in PROCESSES
                for process, host in self.hosts(name).items()
            }
        loss = self._losses.get(record.attempt)
        if loss and loss.step == measurement.step:
            *_, host = self.hosts(loss.of).values()
            self.taken.append(host.node_id)
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


class OneTrial:
    """A sweep of one trial.

    Args:
        losses: what is taken from its first attempt, from its second, and so on.
        slots: of a host for LoRA trials.
    """

    def __init__(self, *losses: Loss, slots: int = 0) -> None:
        self._losses, self._slots = losses, slots

    def run(
        self, cluster: Cluster, location: Path, base_cache: Path, overrides: Iterable[str]
    ) -> dict[str, Any]:
        """What was seen of it; a host that was drained has a successor then."""
        config = load_sweep("quickstart", [*overrides, f"resources.lora.slots={self._slots}"])
        losses = Losses(cluster, self._losses)
        sweep = Sweep(config, location, base_cache)
        sweep.run([losses, WandbListener(config.wandb, location)])
        for loss in self._losses:
            if loss.how == "drain":
                cluster.add_node(num_cpus=1)
        return {"steps": losses.steps, "lay_on": losses.lay_on, "taken": losses.taken}


CORE, OF_DRIVERS = {"num_cpus": 1}, {"num_cpus": 0, "resources": {"driver": 1}}
# Hosts beside the head, and sweeps by their names.
KINDS: dict[str, tuple[list[dict[str, Any]], dict[str, OneTrial]]] = {
    "trials": (
        [CORE, CORE],
        {
            "undisturbed": OneTrial(),
            "drained": OneTrial(Loss(20, "drain")),
            "drained in a slot": OneTrial(Loss(20, "drain", "ray::SlotHost"), slots=1),
            "killed": OneTrial(Loss(50, "kill")),
        },
    ),
    # Two cores for the workers, and a host of its own for the process that waits for them.
    "groups": (
        [CORE, CORE, CORE, OF_DRIVERS, OF_DRIVERS],
        {
            "undisturbed": OneTrial(),
            "drained": OneTrial(Loss(20, "drain", "ray::Worker"), Loss(65, "drain")),
        },
    ),
}


def token_of_worker() -> tuple[str | None, str | None]:
    """The hub's token in a worker before and after it asked for the driver's."""
    from huggingface_hub import get_token

    from trainables.workers.credentials import use_credentials

    before = get_token()
    use_credentials()
    return before, get_token()


class Trial:
    """What waits for a request to stop."""

    def is_asked(self) -> bool:
        from trainables.workers.stop_request import stop_is_requested

        return stop_is_requested()


def is_request_heard() -> bool:
    """Whether a trial hears that its node drains when the request's own node is lost."""
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(**OF_DRIVERS)
    with ray_cluster(cluster.address):
        trials: Any = ray.remote(num_cpus=1)(Trial)
        with StopRequest(beside_driver()):
            host, trial = cluster.add_node(**CORE), trials.remote()
            assert not ray.get(trial.is_asked.remote())
            losses = Losses(cluster, ())
            (lost,) = losses.hosts("ray::_StopRequest").values()
            cluster.add_node(**OF_DRIVERS)
            losses.kill(lost)
            losses.drain(host)
            deadline = time.monotonic() + PATIENCE_S
            while not ray.get(trial.is_asked.remote()) and time.monotonic() < deadline:
                time.sleep(0.1)
            asked = ray.get(trial.is_asked.remote())
    cluster.shutdown()
    return bool(asked)


def main(kind: str, folder: str, base_cache: str, *overrides: str) -> None:
    hosts, sweeps = KINDS[kind]
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for host in hosts:
        cluster.add_node(**host)
    token = os.environ["HF_TOKEN"] = f"hf_{uuid4().hex}"  # the cluster is up, and has none
    seen: dict[str, Any] = {}
    with ray_cluster(cluster.address):
        assert ray.get(ray.remote(token_of_worker).remote()) == (None, token)
        for name, sweep in sweeps.items():
            seen[name] = sweep.run(cluster, Path(folder) / name, Path(base_cache), overrides)
    session = Path(cluster.head_node.get_session_dir_path())
    cluster.shutdown()
    written = [file for place in (session, Path(folder)) for file in place.rglob("*")]
    assert any("wandb" in str(file) for file in written)
    assert len(written) > 100
    found = [
        str(file) for file in written if file.is_file() and token.encode() in file.read_bytes()
    ]
    print(json.dumps({"token_found_in": found, "sweeps": seen}))


if __name__ == "__main__":
    if sys.argv[1:] == ["request"]:
        print(json.dumps(is_request_heard()))
    else:
        main(*sys.argv[1:])
