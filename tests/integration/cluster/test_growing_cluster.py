"""Ray's own autoscaler, over nodes that are processes here: it makes what trials ask for."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import psutil
import pytest
from conftest import SMALL
from crowd import Driver, gpus_of, looked_at
from lone_head import free_port, head, share_token

from trainables.records.schema import TrialStatus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("base_dir")]

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


class GrowingCluster:
    """A head without a GPU, whose autoscaler may start nodes that have some.

    Attributes:
        address: of the head.
    """

    def __init__(self, address: str, process: Popen[bytes]) -> None:
        self.address = address
        self._head = psutil.Process(process.pid)

    def workers(self) -> Counter[int]:
        """How many there are, by their GPUs."""
        return Counter(gpus for gpus in map(_gpus, self._head.children(recursive=True)) if gpus)


def _processes(port: int) -> dict[str, object]:
    """Ray's provider for tests of its autoscaler; `port` is the head's."""
    return {
        "type": "fake_multinode",
        "gcs_address": f"127.0.0.1:{port}",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }


def _gpus(process: psutil.Process) -> int:
    """Of the node whose raylet the process is; 0 for any other."""
    with suppress(psutil.Error):
        found = re.search(
            r"raylet .*--static_resource_list=\S*GPU,(\d+)", " ".join(process.cmdline())
        )
        return int(found[1]) if found else 0
    return 0


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrowingCluster]:
    share_token(monkeypatch)
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    monkeypatch.setenv("RAY_enable_autoscaler_v2", "0")  # as in cluster.yaml
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    port, config = free_port(), tmp_path / "cluster.json"
    config.write_text(json.dumps(CLUSTER | {"provider": _processes(port)}))
    options = ["--num-cpus", "0", "--resources", json.dumps({"driver": 1})]
    options += ["--autoscaling-config", str(config)]
    # Else each node starts a worker for each of its cores, and nobody needs as many.
    options += ["--system-config", json.dumps({"prestart_worker_first_driver": False})]
    with head(port, *options) as (address, process):
        yield GrowingCluster(address, process)


@pytest.mark.slow
def test_a_cluster_grows_by_what_trials_ask_for_and_shrinks(
    growing: GrowingCluster, tmp_path: Path, base_cache: Path
) -> None:
    assert growing.workers() == {}
    with looked_at(growing.workers) as seen:
        driver = Driver(
            growing.address,
            tmp_path / "s",
            base_cache,
            0.5,
            MIXED,
            *("--num-trials", str(TRIALS)),
        )
        records, left = driver.wait(timeout_s=150)
        deadline = time.monotonic() + 60
        while growing.workers() and time.monotonic() < deadline:
            time.sleep(0.2)
    assert [record.number for record in records] == list(range(TRIALS))
    assert TrialStatus.RUNNING not in {record.status for record in records}
    assert {gpus_of(record) for record in records} == {1, 4}
    most = {gpus: max(workers[gpus] for workers in seen) for gpus in MOST}
    assert most == MOST  # full fine-tuning has the large node, and both small ones were needed
    assert left == []
    assert growing.workers() == {}
