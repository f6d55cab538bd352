"""Ray's own autoscaler, with processes as nodes, starts what trials ask for and ends it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from lone_head import free_port, head, share_token
from small_trials import SMALL

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("base_dir")]

TRIALS = 8
MIXED = (
    *SMALL,
    "sampler=random",
    "confirm=null",
    "early_stopping=null",
    "wandb.mode=disabled",
    "resources.lora.gpus_per_worker=1",
    "resources.full.workers=4",
    "resources.full.gpus_per_worker=1",
    "train.micro_batch_size=1",
)
MOST = {1: 2, 4: 1}  # workers by the GPUs they have
CLUSTER = {
    "cluster_name": "growing",
    "max_workers": sum(MOST.values()),
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"driver": 1}, "node_config": {}, "max_workers": 0},
        **{
            f"{gpus} GPUs": {
                "resources": {"CPU": gpus, "GPU": gpus},
                "node_config": {},
                "max_workers": most,
            }
            for gpus, most in MOST.items()
        },
    },
}


def workers(head: psutil.Process) -> Counter[int]:
    """How many nodes there are, by their GPUs."""
    found: Counter[int] = Counter()
    for process in head.children(recursive=True):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if node := re.search(r"raylet .*--static_resource_list=\S*GPU,(\d+)", command):
                found[int(node[1])] += 1
    return found


def test_a_cluster_grows_by_what_trials_ask_for_and_shrinks(
    tmp_path: Path, base_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_token(monkeypatch)
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    monkeypatch.setenv("RAY_enable_autoscaler_v2", "0")  # as in cluster.yaml
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    port, config = free_port(), tmp_path / "cluster.json"
    provider = {
        "type": "fake_multinode",
        "gcs_address": f"127.0.0.1:{port}",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    config.write_text(json.dumps(CLUSTER | {"provider": provider}))
    options = ["--num-cpus", "0", "--resources", json.dumps({"driver": 1})]
    options += ["--autoscaling-config", str(config)]
    # Else each node starts a worker for each of its cores, and nobody needs as many.
    options += ["--system-config", json.dumps({"prestart_worker_first_driver": False})]
    (tmp_path / ".base").symlink_to(base_cache)
    program = Path(__file__).parents[1] / "fake_command.py"
    seen: Counter[int] = Counter()
    with head(port, *options) as (address, ray):
        command = [sys.executable, program, "quickstart", "--address", address]
        command += ["--output-dir", tmp_path, "--num-trials", str(TRIALS)]
        command += [word for setting in MIXED for word in ("--set", setting)]
        driver = subprocess.Popen(command)
        while driver.poll() is None:
            seen |= workers(psutil.Process(ray.pid))
            time.sleep(0.2)
        deadline = time.monotonic() + 60
        while left := workers(psutil.Process(ray.pid)):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    assert driver.returncode == 0
    records = Ledger(tmp_path / "quickstart").trials()
    assert TrialStatus.RUNNING not in {record.status for record in records}
    assert {record.config.recipe for record in records} == {"lora", "full"}
    assert seen.keys() == MOST.keys()  # full fine-tuning has the large node
    assert seen <= Counter(MOST)
