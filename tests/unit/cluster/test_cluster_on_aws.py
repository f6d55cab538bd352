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
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private import resource_demand_scheduler
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.event_summarizer import EventSummarizer
from ray.autoscaler._private.node_launcher import BaseNodeLauncher
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler._private.prom_metrics import NullMetric
from ray.autoscaler._private.util import ConcurrentCounter, prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

sys.path.insert(0, str(Path(__file__).parents[3] / "clusters"))

import spot_first
from autoscaler_limits import worker_types

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


def test_ray_fills_it_in(config: dict[str, Any]) -> None:
    validate_config({key: value for key, value in config.items() if key != "head_node"})
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "driver": 1}
    for name in ("gpu_spot", "gpu_on_demand"):
        assert types[name]["resources"]["GPU"] == 1
        assert types[name]["resources"]["CPU"] == 8
    assert types["eight_gpus_spot"]["resources"]["GPU"] == 8
    assert worker_types(config)[0]["resources"]["GPU:L40S"] == 1


@pytest.mark.parametrize("node_type", yaml.safe_load(CLUSTER.read_text())["available_node_types"])
def test_ec2_takes_each_node_type(config: dict[str, Any], node_type: str) -> None:
    instance = launch(config, node_type)
    assert instance.instance_lifecycle == ("spot" if node_type.endswith("_spot") else None)
    role = "head" if node_type == "head" else "worker"
    assert instance.iam_instance_profile["Arn"].endswith(f"/forgetting-sweeps-{role}")
    (disk,) = instance.volumes.all()
    assert disk.size >= 200
    assert disk.encrypted


def test_the_world_reaches_ssh_and_nothing_else(config: dict[str, Any]) -> None:
    instance = launch(config, "head")
    (group,) = instance.security_groups
    rules = boto3.resource("ec2", "us-west-2").SecurityGroup(group["GroupId"]).ip_permissions
    open_to_all = [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in open_to_all] == [(22, 22)]
    inside = [rule for rule in rules if rule not in open_to_all]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [
        group["GroupId"]
    ]


class TestSpotFirst:
    """The rule in Ray's own demand scheduler and launcher."""

    @pytest.fixture
    def launches(self) -> NodeProviderAvailabilityTracker:
        return NodeProviderAvailabilityTracker()

    def wanted(
        self,
        config: dict[str, Any],
        launches: NodeProviderAvailabilityTracker,
        demands: list[dict[str, float]],
    ) -> dict[str, int]:
        """Nodes that the autoscaler would start."""
        scorer = partial(spot_first.score, node_availability_summary=launches.summary())
        nodes, unmet = resource_demand_scheduler.get_nodes_for(
            config["available_node_types"], {}, "head", 100, demands, scorer
        )
        assert unmet == []
        return dict(nodes)

    def test_spot_where_both_serve(
        self, config: dict[str, Any], launches: NodeProviderAvailabilityTracker
    ) -> None:
        assert self.wanted(config, launches, [ONE_GPU] * 3) == {"gpu_spot": 3}
        assert self.wanted(config, launches, [ONE_GPU | {"GPU": 8.0}]) == {"eight_gpus_spot": 1}

    def test_on_demand_for_half_an_hour_after_ec2_had_no_spot_capacity(
        self, config: dict[str, Any]
    ) -> None:
        ahead = [0.0]
        launches = NodeProviderAvailabilityTracker(timer=lambda: time.time() + ahead[0])
        ec2 = provider(config)
        events = ec2.ec2_fail_fast.meta.client.meta.events
        events.register("provide-client-params.ec2.RunInstances", _no_capacity)
        launcher = BaseNodeLauncher(
            provider=ec2,
            pending=ConcurrentCounter(),
            event_summarizer=EventSummarizer(),
            node_provider_availability_tracker=launches,
            prom_metrics=_NoMetrics(),
            node_types=config["available_node_types"],
        )
        launcher.pending.inc("gpu_spot", 1)
        assert not launcher.launch_node(config, 1, "gpu_spot")
        assert self.wanted(config, launches, [ONE_GPU] * 2) == {"gpu_on_demand": 2}
        ahead[0] = 31 * 60
        assert self.wanted(config, launches, [ONE_GPU] * 2) == {"gpu_spot": 2}

    def test_the_cluster_file_names_it(self, config: dict[str, Any]) -> None:
        from ray.autoscaler._private.providers import load_function_or_class

        (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
        (name,) = [w for w in start.split() if w.startswith("RAY_AUTOSCALER_UTILIZATION_SCORER=")]
        assert load_function_or_class(name.partition("=")[2]) is spot_first.score
        assert "RAY_enable_autoscaler_v2=0" in start  # v2 knows no such rule


def _no_capacity(params: dict[str, Any], **_: Any) -> None:
    assert params["InstanceMarketOptions"] == {"MarketType": "spot"}
    error = {"Code": "InsufficientInstanceCapacity", "Message": "no capacity"}
    raise ClientError({"Error": error}, "RunInstances")


class _NoMetrics:
    def __getattr__(self, name: str) -> NullMetric:
        return NullMetric()
