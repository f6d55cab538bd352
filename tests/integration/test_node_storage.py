"""A node that does not see the sweep's folder is named before a trial is spent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

# The second host lies in a mount namespace of its own, with an empty disk where the sweeps are.
SCRIPT = """
import ctypes, os, sys, threading
from pathlib import Path
from ray.cluster_utils import Cluster
from trainables.errors import UserError
from tune.node_checks import ask_nodes, check_nodes
from tune.ray_cluster import ray_cluster

NEW_MOUNTS, PRIVATE = 0x20000, 0x44000
folder, libc = Path(sys.argv[1]), ctypes.CDLL(None, use_errno=True)

def mount(kind, target, flags):
    if libc.mount(b"none", str(target).encode(), kind, flags, None):
        raise OSError(os.strerror(ctypes.get_errno()))

def add_blind_host():
    if libc.unshare(NEW_MOUNTS):  # of this thread alone, and of what it starts
        print("not permitted")
        return
    libc.mount(b"none", b"/", None, PRIVATE, None)  # fails in a chroot, where it is not needed
    mount(b"tmpfs", folder, 0)
    cluster.add_node(num_cpus=1)

cluster = Cluster(True, shutdown_at_exit=False, head_node_args={"include_dashboard": False})
thread = threading.Thread(target=add_blind_host)
thread.start()
thread.join()
with ray_cluster(cluster.address):
    nodes = ask_nodes(folder / "sweep")
    try:
        check_nodes(nodes, folder / "sweep")
    except UserError as error:
        print(error)
    print(list((folder / "sweep").iterdir()))
cluster.shutdown()
"""


def test_a_node_without_the_shared_storage_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if "not permitted" in done.stdout:
        pytest.skip("a mount namespace of its own is not permitted here")
    said, left = done.stdout.strip().splitlines()[-2:]
    assert said.startswith("--output-dir: 1 of 2 nodes cannot use ")
    assert "what the driver wrote there is not there" in said
    assert left == "[]"
