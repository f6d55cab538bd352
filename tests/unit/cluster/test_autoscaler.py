"""What an autoscaler may make of a cluster counts as the cluster, by the shipped cluster files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config

from trainables.workers.autoscaler import configuration, most_workers, worker_types
from trainables.workers.node import NodeReport
from tune.cluster.node_checks import largest_cluster

PROJECT = Path(__file__).parents[3]


def test_node_types_of_google_cloud() -> None:
    config = prepare_config(yaml.safe_load((PROJECT / "clusters/gcp.yaml").read_text()))
    assert most_workers(config) == {"CPU": 12 * 12, "GPU": 12}


def test_groups_of_kubernetes() -> None:
    documents = yaml.safe_load_all((PROJECT / "clusters/kuberay.yaml").read_text())
    resource = next(d for d in documents if d["kind"] == "RayCluster")
    resource["metadata"]["namespace"] = "default"
    most = most_workers(_derive_autoscaling_config_from_ray_cr(resource))
    assert (most["CPU"], most["GPU"]) == (64, 8)


def test_the_bound_on_all_types_is_taken_up_by_the_largest() -> None:
    types = {
        "head": {"resources": {"CPU": 4}},
        "small": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 9},
        "large": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 2},
        "unknown": {"max_workers": 1},
        "off": {"resources": {"CPU": 192}, "max_workers": 0},
    }
    config = {"head_node_type": "head", "max_workers": 5, "available_node_types": types}
    assert most_workers(config) == {"CPU": 2 * 96 + 3 * 8, "GPU": 2 * 8 + 3}
    assert worker_types(config) == [{"CPU": 8, "GPU": 1}, {"CPU": 96, "GPU": 8}]


def test_gpus_of_each_type_are_counted() -> None:
    types = {
        "head": {"resources": {"CPU": 4}},
        "small": {"resources": {"GPU": 1, "accelerator_type:L40S": 1}, "max_workers": 9},
        "large": {"resources": {"GPU": 8, "accelerator_type:H100": 1}, "max_workers": 2},
    }
    config = {"head_node_type": "head", "max_workers": 5, "available_node_types": types}
    most = most_workers(config)
    assert (most["GPU"], most["GPU:L40S"], most["GPU:H100"]) == (2 * 8 + 3, 5, 2 * 8)
    assert [node.get("GPU:H100") for node in worker_types(config)] == [None, 8]


@pytest.mark.parametrize("monitor", ["_private/monitor.py", "v2/monitor.py"])
def test_the_autoscaler_is_found_among_the_processes(tmp_path: Path, monitor: str) -> None:
    program = tmp_path / "ray" / "autoscaler" / monitor
    program.parent.mkdir(parents=True)
    program.write_text("print('up', flush=True)\ninput()\n")
    file = PROJECT / "clusters/gcp.yaml"
    process = subprocess.Popen(
        [sys.executable, program, f"--autoscaling-config={file}", "--gcs-address=10.0.0.1:6379"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert most_workers(configuration("10.0.0.1:6379")) == {"CPU": 12 * 12, "GPU": 12}
    assert most_workers(configuration("10.0.0.2:6379")) == {}
    process.communicate("\n")
    assert configuration("10.0.0.1:6379") == {}


def test_a_cluster_is_never_smaller_than_it_is_nor_without_its_head() -> None:
    head = NodeReport(address="1", ray="", python="", most_workers={"CPU": 64, "GPU": 8, "disk": 2})
    worker = NodeReport(address="2", ray="", python="")
    of_head = {"CPU": 4, "GPU": 1, "driver": 1, HEAD_NODE_RESOURCE_NAME: 1}
    assert largest_cluster([{"CPU": 96}, of_head], [worker, head]) == {
        "CPU": 100,
        "GPU": 9,
        "disk": 2,
        "driver": 1,
        HEAD_NODE_RESOURCE_NAME: 1,
    }
