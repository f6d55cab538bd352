"""`cluster.yaml` on an EC2 that lives in this process (moto): what Ray starts there, and where."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private import resource_demand_scheduler
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

from trainables.workers.gpu_types import gpu_kind, reserved

sys.path.insert(0, str(Path(__file__).parents[3] / "clusters"))

import spot_first

CLUSTER = Path(__file__).parents[3] / "cluster.yaml"
ONE_GPU = {"GPU": 1.0, "CPU": 4.0}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The file as `ray up` has it once it has looked around in the account."""
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "testing")
        environment.delenv("AWS_ENDPOINT_URL", raising=False)  # of the tests' object store
        environment.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # for the new ssh key
        for role in ("head", "worker"):  # as clusters/README.md has them made
            iam = boto3.client("iam", "us-west-2")
            iam.create_instance_profile(InstanceProfileName=f"forgetting-sweeps-{role}")
        prepared = prepare_config(yaml.safe_load(CLUSTER.read_text()))
        bootstrapped = AWSNodeProvider.bootstrap_config(prepared)
        yield AWSNodeProvider.fillout_available_node_types_resources(bootstrapped)


def provider(config: dict[str, Any]) -> AWSNodeProvider:
    return AWSNodeProvider(config["provider"], config["cluster_name"])


def launch(config: dict[str, Any], node_type: str) -> Any:
    """Start one node as the autoscaler would; the EC2 instance."""
    launcher = provider(config)
    created = launcher.create_node(
        config["available_node_types"][node_type]["node_config"], {TAG_RAY_NODE_KIND: "worker"}, 1
    )
    (instance,) = created.values()
    return instance


@pytest.mark.parametrize("node_type", yaml.safe_load(CLUSTER.read_text())["available_node_types"])
def test_ec2_takes_each_node_type(config: dict[str, Any], node_type: str) -> None:
    instance = launch(config, node_type)
    assert instance.instance_lifecycle == ("spot" if node_type.endswith("_spot") else None)
    role = "head" if node_type == "head" else "worker"
    assert instance.iam_instance_profile["Arn"].endswith(f"/forgetting-sweeps-{role}")
    (disk,) = instance.volumes.all()
    assert disk.size >= 200
    assert disk.encrypted


def wanted(
    config: dict[str, Any], launches: NodeProviderAvailabilityTracker, demand: dict[str, float]
) -> dict[str, int]:
    """Nodes that Ray's own demand scheduler would start for two such demands."""
    scorer = partial(spot_first.score, node_availability_summary=launches.summary())
    nodes, unmet = resource_demand_scheduler.get_nodes_for(
        config["available_node_types"], {}, "head", 100, [demand] * 2, scorer
    )
    assert unmet == []
    return dict(nodes)


def test_spot_nodes_come_first_and_on_demand_ones_for_half_an_hour_without_capacity(
    config: dict[str, Any],
) -> None:
    ahead = [0.0]
    launches = NodeProviderAvailabilityTracker(timer=lambda: time.time() + ahead[0])
    assert wanted(config, launches, ONE_GPU) == {"gpu_spot": 2}
    assert wanted(config, launches, reserved(ONE_GPU | {gpu_kind("L40S"): 1})) == {"gpu_spot": 2}
    assert wanted(config, launches, ONE_GPU | {"GPU": 8.0}) == {
        "eight_gpus_spot": 1,
        "eight_gpus_on_demand": 1,
    }
    full = NodeLaunchException("InsufficientInstanceCapacity", "no capacity", None)
    launches.update_node_availability("gpu_spot", int(time.time()), full)
    assert wanted(config, launches, ONE_GPU) == {"gpu_on_demand": 2}
    ahead[0] = 31 * 60
    assert wanted(config, launches, ONE_GPU) == {"gpu_spot": 2}
