"""A cluster on this machine whose nodes are told that their machines will go, each in another way.

    python cluster_given_notice.py

Which nodes drain after each notice, with the seconds that they have for it, is printed as JSON.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

sys.path.insert(0, str(Path(__file__).parents[1]))

from metadata_service import metadata_service

SCRIPT = Path(__file__).parents[2] / "clusters" / "drain_on_notice.py"
RAY = Path(sys.executable).with_name("ray")
PATIENCE_S = 60.0


@ray.remote(num_cpus=1)
class Busy:
    """What keeps a node from ending as soon as it drains."""

    def is_up(self) -> bool:
        return True


def keep_busy(node: str) -> Any:
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    actor: Any = Busy
    busy = actor.options(scheduling_strategy=here).remote()
    assert ray.get(busy.is_up.remote())
    return busy


def draining() -> dict[str, float]:
    """Ids of the nodes that drain, and the seconds that they have for it."""
    ends = ray._private.state.state.get_draining_nodes()
    return {node: end / 1000 - time.time() for node, end in ends.items()}


def alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def wait_for(condition: Callable[[], Any]) -> Any:
    """What the condition is once it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not (held := condition()):
        assert time.monotonic() < deadline, f"it does not come to that; these drain: {draining()}"
        time.sleep(0.1)
    return held


def give_notice(cloud: str, address: str, *arguments: str) -> tuple[list[str], dict[str, float]]:
    """What drains while the cloud has nothing to tell, and after its notice."""
    with metadata_service() as service:
        command = [sys.executable, str(SCRIPT), cloud, "--address", address]
        command += ["--metadata", service.url, "--every", "0.1", *arguments]
        watching = subprocess.Popen(command)
        try:
            service.wait_until_asked(3, PATIENCE_S)
            before = list(draining())
            service.announce(120)
            assert watching.wait(PATIENCE_S) == 0
        finally:
            watching.kill()
    return before, draining()


def start_pod(address: str) -> tuple[subprocess.Popen[bytes], str]:
    """A worker as KubeRay starts it, and its node's id."""
    others = alive()
    start = f"ulimit -n 65536; {RAY} start --address={address} --num-cpus=1 --block"
    pod = subprocess.Popen([shutil.which("bash") or "bash", "-c", "--", start], stdout=sys.stderr)
    (node,) = wait_for(lambda: alive() - others)
    return pod, node


def main() -> None:
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    head, worker = cluster.head_node.node_id, cluster.add_node(num_cpus=1).node_id
    ray.init(cluster.address, log_to_driver=False)
    pod, in_pod = start_pod(cluster.address)
    try:
        names = {head: "head", worker: "worker", in_pod: "pod"}
        busy = {name: keep_busy(node) for node, name in names.items()}
        before, aws = give_notice("aws", cluster.address, "--node-id", worker)
        pod.send_signal(signal.SIGTERM)
        kubernetes = wait_for(lambda: draining() if in_pod in draining() else {})
        for name in ("worker", "pod"):
            ray.kill(busy[name])
        wait_for(lambda: alive() == {head})
        pod.wait(PATIENCE_S)
        # Without an id it is the node which a driver on this machine would join.
        _, gcp = give_notice("gcp", cluster.address, "--seconds", "90")
    finally:
        pod.kill()
    drained = {"aws": aws, "kubernetes": kubernetes, "gcp": gcp}
    told = {kind: {names[n]: s for n, s in nodes.items()} for kind, nodes in drained.items()}
    print(json.dumps({**told, "before": before}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
