"""How far Ray's autoscaler may still scale a cluster, asked where it runs: on the head.

Ray has no API for it: `ray status` and the GCS know the existing nodes, but the limits are in the
autoscaler's own configuration. That is a file named on its process's command line (v1 and v2
alike) or, on Kubernetes, the RayCluster resource. Nodes that it failed to start are recorded in
the GCS, for `ray status`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is compiled

from trainables.workers.gpu_types import counted_by_type

_MONITORS = ("ray/autoscaler/_private/monitor.py", "ray/autoscaler/v2/monitor.py")
_OPTION = "--autoscaling-config="
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def configuration(cluster: str) -> Mapping[str, Any]:
    """The configuration of the autoscaler running on this node; empty if none does.

    `cluster`: address of its GCS, as other clusters' autoscalers may run on this machine.
    """
    return _of_kuberay() or _of_process(cluster) or {}


def worker_types(config: Mapping[str, Any]) -> list[dict[str, float]]:
    """Resources of each worker type that a configuration allows, if it states them."""
    return [t["resources"] for t in _worker_types(config) if t["resources"]]


def most_workers(config: Mapping[str, Any]) -> dict[str, float]:
    """Resources of the largest set of workers that a configuration allows.

    Args:
        config: as Ray's autoscaler takes it; `max_workers` bounds each type and the total.

    Returns:
        For each kind, the sum over the nodes that have most of it; if `max_workers` does not allow
        all types at once, the sums of different kinds may not be available together.
    """
    workers = _worker_types(config)
    kinds = {kind for node_type in workers for kind in node_type["resources"]}
    return {kind: _most(kind, workers, config.get("max_workers", 0)) for kind in kinds}


def last_failure(cluster: str) -> str | None:
    """Why the cluster's autoscaler failed to start the last node it tried; None if it did not fail.

    Only v1 records the reasons given to it, for example by AWS, and `ray status` keeps them for
    half an hour. `cluster`: address of its GCS.
    """
    status = GcsClient(address=cluster).internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
    report = json.loads(status).get("autoscaler_report", {}) if status else {}
    tried = report.get("node_availability_summary", {}).get("node_availabilities", {}).values()
    last = max(tried, key=lambda record: record["last_checked_timestamp"], default=None)
    if last is None or last["is_available"]:
        return None
    why = last["unavailable_node_information"]
    return f"{last['node_type']} cannot be had: {why['category']}: {why['description']}"


def _worker_types(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The types that may have nodes; one with no workers is only there to be enabled by hand."""
    types = config.get("available_node_types", {})
    return [
        {**node_type, "resources": counted_by_type(node_type.get("resources", {}))}
        for name, node_type in types.items()
        if name != config["head_node_type"] and node_type.get("max_workers", 1)
    ]


def _most(kind: str, workers: Iterable[Mapping[str, Any]], nodes: int) -> float:
    total = 0.0
    amounts = [(w["resources"].get(kind, 0), w.get("max_workers", nodes)) for w in workers]
    for amount, count in sorted(amounts, reverse=True):
        taken = min(count, nodes)
        total, nodes = total + taken * amount, nodes - taken
    return total


def _of_process(cluster: str) -> Mapping[str, Any] | None:
    """The configuration of the cluster's autoscaler, if it is among this node's processes."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []  # None of another user's
        if not any(argument.endswith(_MONITORS) for argument in command):
            continue
        if f"--gcs-address={cluster}" not in command:
            continue
        for argument in command:
            if argument.startswith(_OPTION):
                file = Path(argument.removeprefix(_OPTION)).expanduser()
                return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    return None


def _of_kuberay() -> Mapping[str, Any] | None:
    """The RayCluster as the head's autoscaler sidecar sees it; the head's account may read it."""
    cluster = os.environ.get("RAY_CLUSTER_NAME")
    if cluster is None or not _NAMESPACE.exists():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    namespace = _NAMESPACE.read_text(encoding="utf-8").strip()
    try:
        resource = node_provider.KubernetesHttpApiClient(namespace).get(f"rayclusters/{cluster}")
    except OSError:  # a worker's account may not read it
        return None
    if not resource["spec"].get("enableInTreeAutoscaling"):
        return None
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))
