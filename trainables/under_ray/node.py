"""What a node of the cluster says of itself, asked in one task each."""

from __future__ import annotations

import platform
import shutil
import subprocess

import ray
from pydantic import Field

from trainables.config import Frozen
from trainables.under_ray.autoscaler import most_workers

_ASK_GPUS_TIMEOUT_S = 30.0


class NodeReport(Frozen):
    """One node.

    Attributes:
        address: its IP address, as in `ray status`.
        ray: version that its processes run.
        python: version of the same, such as 3.11.9.
        gpu_bytes: memory of its smallest GPU; None where it has none.
        most_workers: resources of all workers that the autoscaler may start, where it runs here.
    """

    address: str
    ray: str
    python: str
    gpu_bytes: int | None = None
    most_workers: dict[str, float] = Field(default_factory=dict)


@ray.remote(num_cpus=0, max_retries=0)
def report_node() -> NodeReport:
    """The report of the node that this runs on."""
    return this_node()


def this_node() -> NodeReport:
    """The report of this process's node."""
    return NodeReport(
        address=ray.util.get_node_ip_address(),
        ray=ray.__version__,
        python=platform.python_version(),
        gpu_bytes=gpu_bytes(),
        most_workers=most_workers(),
    )


def gpu_bytes() -> int | None:
    """Bytes of this node's smallest GPU; asks NVIDIA's driver, so one in use need not be free."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    done = subprocess.run(  # noqa: S603 - a fixed command
        [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=_ASK_GPUS_TIMEOUT_S,
        check=False,
    )
    sizes = [int(line) << 20 for line in done.stdout.split() if line.isdigit()]
    return min(sizes, default=None)
