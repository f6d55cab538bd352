"""A sweep plans with the cluster that its autoscaler may make, by the shipped cluster files."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray._common.constants import HEAD_NODE_RESOURCE_NAME

from tune.cluster import cloud
from tune.cluster.node_checks import largest_cluster

PROJECT = Path(__file__).parents[3]
ADDRESS = "10.0.0.1:6379"
TYPES = {
    "head": {"resources": {"CPU": 4}},
    "small": {"resources": {"CPU": 8, "GPU": 1, "accelerator_type:L40S": 1}, "max_workers": 9},
    "large": {"resources": {"CPU": 96, "GPU": 8, "accelerator_type:H100": 1}, "max_workers": 2},
    "unknown": {"max_workers": 1},
    "off": {"resources": {"CPU": 192}, "max_workers": 0},
}


def limits(config: Path, tmp_path: Path) -> cloud.Limits:
    """What the driver finds while an autoscaler with this configuration runs on its node."""
    program = tmp_path / "ray" / "autoscaler" / "_private" / "monitor.py"
    program.parent.mkdir(parents=True)
    program.write_text("print('up', flush=True)\ninput()\n")
    with subprocess.Popen(
        [sys.executable, program, f"--autoscaling-config={config}", f"--gcs-address={ADDRESS}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = cloud.autoscaler_limits()
        process.communicate("\n")
    assert cloud.autoscaler_limits() == ({}, [])
    return found


def test_most_workers_are_the_best_of_all_sets_of_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=ADDRESS))
    config = {"head_node_type": "head", "max_workers": 5, "available_node_types": TYPES}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    found = limits(file, tmp_path)
    allowed = [(s, h) for s, h in product(range(10), range(3)) if s + h <= 5]
    assert found.most["CPU"] == max(8 * small + 96 * large for small, large in allowed)
    assert found.most["GPU"] == max(small + 8 * large for small, large in allowed)
    assert (found.most["GPU:L40S"], found.most["GPU:H100"]) == (5, 16)
    assert [node.get("GPU:H100") for node in found.types] == [8, None]


def test_a_cluster_is_never_smaller_than_it_is_nor_without_its_head() -> None:
    head = {"CPU": 4, "GPU": 1, "driver": 1, HEAD_NODE_RESOURCE_NAME: 1}
    most = {"CPU": 64.0, "GPU": 8.0, "disk": 2.0}
    largest = {"CPU": 100, "GPU": 9, "disk": 2, "driver": 1, HEAD_NODE_RESOURCE_NAME: 1}
    assert largest_cluster([{"CPU": 96}, head], most) == largest
