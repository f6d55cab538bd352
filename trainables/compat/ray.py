"""Ray, tried with 2.59 and 2.60."""

from __future__ import annotations

import json
import os
from typing import Any

import ray


def count_memory_kills_as_lost_processes() -> None:
    """Let Tune treat processes that Ray kills for want of memory as lost ones, like any other.

    Why: Ray has a type of error of its own for them, `OutOfMemoryError`, which Tune does not know:
    it would end the whole sweep with "Caught unexpected exception". Upstream: not reported. The
    patch holds for as long as this process lives.
    """
    from ray.air.execution._internal import actor_manager
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.tune.execution import tune_controller

    for module in (actor_manager, tune_controller):
        module.RayActorError = (RayActorError, OutOfMemoryError)


def draining_nodes() -> set[str]:
    """Ids, in hex, of the nodes that were announced to go away.

    Why: no public API lists them; Ray's own Train and Serve read them here. Upstream: the call came
    with ray-project/ray#38096 and is for internal use.
    """
    return set(ray._private.state.state.get_draining_nodes())


def actor_state(actor: Any) -> tuple[str, int]:
    """An actor's state in Ray's word, such as `ALIVE`, and how often it was restarted.

    Why: `ray.util.state` asks the dashboard, which a cluster may lack. Upstream: not reported.
    """
    known = ray._private.state.state.actor_table(actor._actor_id.hex())
    return known.get("State", ""), known.get("NumRestarts", 0)


def container_cpus() -> int:
    """CPUs that Ray would count on this machine: a container's share where it runs in one.

    Why: `os.cpu_count` knows no containers. Upstream: nothing to mend.
    """
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True))


def running_head() -> str:
    """The address that Ray would use for `auto`.

    Why: `ray.init("auto")` says only after half a minute that nothing answers there. Upstream: not
    reported.

    Raises:
        ConnectionError: no Ray runs on this machine, and `RAY_ADDRESS` is not set.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return str(os.environ.get("RAY_ADDRESS") or canonicalize_bootstrap_address("auto"))


def node_launches(cluster: str) -> dict[str, Any]:
    """What the autoscaler (v1) last reported of its attempts to start nodes, by node type.

    Args:
        cluster: address of the cluster's GCS.

    Why: `ray status` prints it, and no API returns it. Upstream: not reported.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    status = GcsClient(address=cluster).internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)
    report = json.loads(status).get("autoscaler_report", {}) if status else {}
    launches = report.get("node_availability_summary", {}).get("node_availabilities", {})
    return {launch["node_type"]: launch for launch in launches.values()}


def kuberay_config(namespace: str, cluster: str) -> dict[str, Any]:
    """The autoscaler's configuration of a RayCluster resource; empty if it does not scale itself.

    Why: the limits of a cluster's size are in that resource alone. Upstream: not reported.

    Raises:
        OSError: the account of this process may not read it.
    """
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    resource = node_provider.KubernetesHttpApiClient(namespace).get(f"rayclusters/{cluster}")
    if not resource["spec"].get("enableInTreeAutoscaling"):
        return {}
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))


def utilization_score(
    resources: dict[str, float], demands: list[dict[str, float]], node_type: str, launches: Any
) -> Any:
    """Ray's own score of a node type for what pending work asks for; None if it serves nothing.

    Why: it knows no spot capacity, so another rule is put around it. Upstream:
    ray-project/ray#20774 and #53636.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    return _default_utilization_scorer(
        resources, demands, node_type, node_availability_summary=launches
    )
