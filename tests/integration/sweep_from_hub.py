"""The sweep command on a cluster of two nodes, each with its own cache of the hub.

    python sweep_from_hub.py CACHE_1 CACHE_2 SESSIONS ARGUMENT...

The cluster starts without the hub's address and token and AWS's secret key, which the command
alone has. Ray's
logs lie below SESSIONS.
"""

from __future__ import annotations

import os
import sys

from ray.cluster_utils import Cluster

from tune.cli import main


def start(caches: list[str], sessions: str) -> Cluster:
    """A head that runs no trial, and a node with two CPUs for each cache."""
    names = ("HF_TOKEN", "HF_ENDPOINT", "AWS_SECRET_ACCESS_KEY")
    ours = {name: os.environ.pop(name) for name in names}
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": sessions}
    cluster = Cluster(True, head_node_args=head)
    for cache in caches:
        os.environ["HF_HOME"] = cache
        cluster.add_node(num_cpus=2)
    os.environ |= ours
    return cluster


if __name__ == "__main__":
    started = start(sys.argv[1:3], sys.argv[3])
    code = main(["quickstart", "--address", started.address, *sys.argv[4:]])
    started.shutdown()
    sys.exit(code)
