"""Every node is asked before a trial is spent: versions that differ, memory of busy GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

pytestmark = pytest.mark.ray

PROJECT = Path(__file__).parents[3]
# A cluster of its own: the head, a host whose Ray was changed while it ran there, and one that is
# going away, which is not asked.
SCRIPT = """
import os
import subprocess
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from trainables.errors import UserError
from tune.cluster.node_checks import ask_nodes, check_nodes, nodes_up, smallest_gpu
from tune.cluster.ray_cluster import ray_cluster

@ray.remote(num_gpus=2)
class Busy:
    def ready(self):
        return True

cluster = Cluster(True, head_node_args={"num_cpus": 1, "num_gpus": 2})
os.environ["CHANGED_RAY"] = "2.59.1"
cluster.add_node(num_cpus=1)
del os.environ["CHANGED_RAY"]
leaving = cluster.add_node(num_cpus=1, resources={"leaving": 1})
notice = ["drain-node", "--address", cluster.address, "--node-id", leaving.node_id]
notice += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
notice += ["--deadline-remaining-seconds", "120"]
with ray_cluster(cluster.address):
    busy = Busy.remote()
    on_the_other = Busy.options(num_gpus=0, resources={"leaving": 1}).remote()
    ray.get([busy.ready.remote(), on_the_other.ready.remote()])
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *notice], stdout=sys.stderr)
    assert len(nodes_up()) == 2
    nodes = ask_nodes(Path(sys.argv[1]), [])
    print(smallest_gpu(nodes, None))
    try:
        check_nodes(nodes, Path(sys.argv[1]))
    except UserError as error:
        print(error)
ray.__version__ = "2.59.1"
try:
    with ray_cluster(cluster.address):
        pass
except UserError as error:
    print(error)
"""
# Runs in every process of the cluster, and changes Ray's version in workers of the second host.
SITECUSTOMIZE = """
import os, sys
changed = os.environ.get("CHANGED_RAY")
if changed and any("default_worker.py" in argument for argument in sys.orig_argv):
    import ray
    ray.__version__ = changed
"""


def test_what_nodes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 24564\n")
    program.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PROJECT}")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "sweep")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    smallest, of_a_node, of_the_driver = done.stdout.strip().splitlines()[-3:]
    assert int(smallest) == 24564 << 20
    assert f"runs Ray 2.59.1 and Python {sys.version.split()[0]}" in of_a_node
    assert f"this command Ray {ray.__version__}" in of_a_node
    assert f"the cluster runs Ray {ray.__version__}" in of_the_driver
    assert "this command Ray 2.59.1" in of_the_driver
