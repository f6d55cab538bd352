"""How far Ray's autoscaler may grow this cluster, and why it could not start its last node.

Ray has no API for it: the limits are in the autoscaler's own configuration, which is a file named
on its command line (v1 and v2) or, on Kubernetes, the RayCluster resource. It runs on the head, and
so does the sweep's driver, which calls this through `tune/cluster/cloud.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from trainables.compat.ray import kuberay_config, node_launches
from trainables.workers.gpu_types import counted_by_type

_MONITORS = ("ray/autoscaler/_private/monitor.py", "ray/autoscaler/v2/monitor.py")
_OPTION = "--autoscaling-config="
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def limits(cluster: str) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Resources of the most workers that may run, and of one worker of each type.

    `cluster`: address of its GCS, as another cluster's autoscaler may run on this machine. Both
    are empty if none of this cluster's runs here.
    """
    config = _kuberay_config() or _process_config(cluster)
    types = worker_types(config)
    kinds = {kind for node_type in types for kind in node_type["resources"]}
    most = {kind: _most(kind, types, config.get("max_workers", 0)) for kind in kinds}
    return most, [node_type["resources"] for node_type in types if node_type["resources"]]


def last_failure(cluster: str) -> str | None:
    """Why the last node that v1 tried could not be started; None if it was, as Ray's GCS has it."""
    tried = node_launches(cluster).values()
    last = max(tried, key=lambda record: record["last_checked_timestamp"], default=None)
    if last is None or last["is_available"]:
        return None
    why = last["unavailable_node_information"]
    return f"no {last['node_type']} node could be started: {why['category']}: {why['description']}"


def worker_types(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The node types of an autoscaler's configuration that may have workers."""
    return [
        {**node_type, "resources": counted_by_type(node_type.get("resources", {}))}
        for name, node_type in config.get("available_node_types", {}).items()
        if name != config["head_node_type"] and node_type.get("max_workers", 1)
    ]


def _most(kind: str, types: Sequence[Mapping[str, Any]], nodes: int) -> float:
    """The most of a kind that `nodes` workers have, within each type's own `max_workers`."""
    amounts = [(t["resources"].get(kind, 0), t.get("max_workers", nodes)) for t in types]
    total = 0.0
    for amount, count in sorted(amounts, reverse=True):
        taken = min(count, nodes)
        total, nodes = total + taken * amount, nodes - taken
    return total


def _process_config(cluster: str) -> dict[str, Any]:
    """The configuration of the cluster's autoscaler, if it is among this node's processes."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []  # None of another user's
        is_monitor = any(argument.endswith(_MONITORS) for argument in command)
        if is_monitor and f"--gcs-address={cluster}" in command:
            for argument in command:
                if argument.startswith(_OPTION):
                    file = Path(argument.removeprefix(_OPTION)).expanduser()
                    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    return {}


def _kuberay_config() -> dict[str, Any]:
    """The RayCluster as the head's autoscaler sees it; the head's account may read it."""
    cluster = os.environ.get("RAY_CLUSTER_NAME")
    if cluster is None or not _NAMESPACE.exists():
        return {}
    namespace = _NAMESPACE.read_text(encoding="utf-8").strip()
    try:
        return kuberay_config(namespace, cluster)
    except OSError:  # a worker's account may not read it
        return {}
