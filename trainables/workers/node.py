"""What each node of the cluster reports about itself, in one task per node."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import ray
from pydantic import Field
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.config import Frozen
from trainables.errors import Fault, UserError, error_text
from trainables.storage.object_storage import is_store_out
from trainables.storage.storage import open_storage
from trainables.workers.credentials import use_credentials
from trainables.workers.gpu_types import gpu_types
from trainables.workers.granted_gpus import ask_nvidia_smi

_NOT_SEEN = "what the driver wrote there is not there"
SHARE_STORAGE = (
    "mount the same storage there on every node, or give a place that all reach, such as "
    "--output-dir s3://bucket/sweeps"
)


class NodeReport(Frozen):
    """One node.

    Attributes:
        address: its IP address, as in `ray status`.
        ray, python: versions of its processes, such as 3.11.9.
        gpu_bytes: memory of its smallest GPU; None if it has none.
        gpu_types: as Ray names them.
        storage_fault: why it cannot work in the sweep's folder; None if it can.
        absent: paths it was asked for and does not have.
    """

    address: str
    ray: str
    python: str
    gpu_bytes: int | None = None
    gpu_types: list[str] = Field(default_factory=list)
    storage_fault: str | None = None
    absent: list[str] = Field(default_factory=list)


def on_node(task: Any, node: str) -> Any:
    """The task, to be run on the node of this id or nowhere."""
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


@ray.remote(num_cpus=0, max_retries=0)
def report_node(location: str, marker: str, paths: list[str]) -> NodeReport:
    """The report of the node that this task runs on.

    The driver has written a file named `marker` in the sweep's folder; trials read the paths.
    """
    use_credentials()
    absent = [path for path in paths if not Path(path).exists()]
    found = {"storage_fault": _storage_fault(location, marker), "absent": absent}
    return this_node().model_copy(update=found)


def _storage_fault(location: str, marker: str) -> str | None:
    """Why the sweep's folder on this node is not the driver's, or is not writable."""
    try:
        storage = open_storage(location)
        if not storage.exists(marker):
            return _NOT_SEEN
        answer = f"{marker}.{ray.get_runtime_context().get_node_id()}"
        storage.write(answer, b"")
        storage.remove(answer)
    except OSError as error:
        return error_text(error)
    return None


def check_sees(location: str, name: str) -> None:
    """Check that a folder of the sweep is the same here as on the driver.

    A node that joined after the nodes were asked may have its own folder at the same path. The
    driver has seen a file of this name there.

    Raises:
        UserError: the file is not there.
        OSError: the object store is out, which says nothing about the node.
    """
    try:
        reason = None if open_storage(location).exists(name) else _NOT_SEEN
    except OSError as error:
        if is_store_out(error):
            raise
        reason = error_text(error)
    if reason is not None:
        rule = f"node {ray.util.get_node_ip_address()} cannot use {location}: {reason}"
        raise UserError([Fault("--output-dir", rule, SHARE_STORAGE)])


def this_node() -> NodeReport:
    """The report of this process's node."""
    here = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return NodeReport(
        address=ray.util.get_node_ip_address(),
        ray=ray.__version__,
        python=platform.python_version(),
        gpu_bytes=gpu_bytes(int(resources.get("GPU", 0))),
        gpu_types=gpu_types(resources),
    )


def gpu_bytes(count: int) -> int | None:
    """Bytes of the smallest of this node's `count` largest GPUs, busy or not; None if unknown.

    The driver lists all GPUs, but not which of them Ray was started with.
    """
    sizes = [int(size) << 20 for size in ask_nvidia_smi("memory.total") if size.isdigit()]
    return min(sorted(sizes, reverse=True)[:count], default=None)
