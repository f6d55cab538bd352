"""A node that does not see the sweep's folder is named before a trial is spent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainables.config import TrialConfig
from trainables.records.schema import TrialStatus
from trainables.workers.reporters import OUTCOME
from trainables.workers.trainable import run_trial

pytestmark = pytest.mark.ray

# The second host lies in a mount namespace of its own, with an empty disk where the sweeps are.
SCRIPT = """
import ctypes, os, sys, threading
from pathlib import Path
from ray.cluster_utils import Cluster
from trainables.errors import UserError
from tune.cluster.node_checks import ask_nodes, check_nodes
from tune.cluster.ray_cluster import ray_cluster

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

head = {"include_dashboard": False, "num_cpus": 0}
cluster = Cluster(True, shutdown_at_exit=False, head_node_args=head)
thread = threading.Thread(target=add_blind_host)
thread.start()
thread.join()
if sys.argv[2:]:  # as if it had joined after all were asked
    from tune import sweep
    from tune.cli import main

    sweep.check_nodes = lambda *arguments: None
    options = ["--address", cluster.address, "--output-dir", str(folder), *sys.argv[2:]]
    print("ended with", main(["quickstart", *options]))
    print(list(folder.glob("*")), flush=True)
    cluster.shutdown()
    os._exit(0)
with ray_cluster(cluster.address):
    tasks = folder / "tasks"
    tasks.mkdir()
    nodes = ask_nodes(folder / "sweep", [str(tasks)])
    try:
        check_nodes(nodes, folder / "sweep")
    except UserError as error:
        print(error)
    print(list((folder / "sweep").iterdir()))
cluster.shutdown()
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if "not permitted" in done.stdout:
        pytest.skip("a mount namespace of its own is not permitted here")
    return done


def test_a_node_without_the_shared_storage_is_named(tmp_path: Path) -> None:
    said, lacks, left = run(tmp_path).stdout.strip().splitlines()[-3:]
    assert lacks.startswith("node ")
    assert f"has no {tmp_path / 'tasks'}; put what the sweep file names where every" in lacks
    assert said.startswith("--output-dir: 1 of 2 nodes cannot use ")
    assert "what the driver wrote there is not there" in said
    assert left == "[]"


@pytest.mark.slow
def test_a_node_that_joins_without_it_evaluates_no_base(tmp_path: Path) -> None:
    done = run(tmp_path, "--set", "eval.limit=4", "--set", "wandb.mode=disabled")
    ended, left = done.stdout.strip().splitlines()[-2:]
    assert ended == "ended with 2"
    assert left == "[]"
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert said.startswith("error: --output-dir: node ")
    assert "what the driver wrote there is not there; mount the same storage there" in said


def test_a_trial_on_such_a_node_says_so(
    cluster: None,
    make_trial: Callable[..., TrialConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr("ray.tune.report", lambda metrics: reported.append(metrics[OUTCOME]))
    trial = make_trial(base_dir=str(tmp_path / "sweep" / "base"), output_dir=str(tmp_path / "t"))
    run_trial({"trial": trial.model_dump(mode="json")})
    (outcome,) = reported
    assert outcome["status"] == TrialStatus.FAILED.value
    assert outcome["reason"].startswith("--output-dir: node ")
    assert not (tmp_path / "t").exists()
