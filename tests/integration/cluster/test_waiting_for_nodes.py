"""The command says which node it waits for, and why the autoscaler could not start one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler.node_launch_exception import NodeLaunchException

from trainables.config import TrialConfig
from tune.cluster import waiting
from tune.cluster.cloud import last_launch_failure
from tune.cluster.waiting import WaitForRoom, awaited
from tune.resources.capacity import amounts_text

pytestmark = pytest.mark.usefixtures("cluster")

STATUS = DEBUG_AUTOSCALING_STATUS.encode()


def gcs() -> GcsClient:
    return GcsClient(address=ray.get_runtime_context().gcs_address)


def record(tracker: NodeProviderAvailabilityTracker) -> None:
    """Write the status as Ray's autoscaler does."""
    summary = AutoscalerSummary({}, {}, [], {}, [], node_availability_summary=tracker.summary())
    status = json.dumps({"autoscaler_report": asdict(summary)})
    gcs().internal_kv_put(STATUS, status.encode(), True, None)


@pytest.fixture
def tracker() -> Iterator[NodeProviderAvailabilityTracker]:
    yield NodeProviderAvailabilityTracker(timer=lambda: 0)
    gcs().internal_kv_del(STATUS, False, None)


def test_the_last_failure_counts_until_a_node_starts(
    tracker: NodeProviderAvailabilityTracker,
) -> None:
    assert last_launch_failure() is None
    quota = NodeLaunchException("VcpuLimitExceeded", "0 vCPUs are allowed", None)
    tracker.update_node_availability("gpu_spot", 1, quota)
    record(tracker)
    text = last_launch_failure()
    assert text == "no gpu_spot node could be started: VcpuLimitExceeded: 0 vCPUs are allowed"
    tracker.update_node_availability("gpu_on_demand", 2, None)
    record(tracker)
    assert last_launch_failure() is None


class EnoughError(Exception):
    pass


def test_the_wait_for_a_node_is_reported_again_and_again_with_the_reason(
    tracker: NodeProviderAvailabilityTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.update_node_availability("gpu", 1, NodeLaunchException("Quota", "0 vCPUs", None))
    record(tracker)
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.1)
    lines: list[str] = []

    def tell(message: str) -> None:
        lines.append(message)
        record(tracker)  # again, as this cluster's own autoscaler writes every five seconds
        if sum("Quota: 0 vCPUs" in line for line in lines) == 2:
            raise EnoughError

    answer = ray.remote(num_cpus=0, num_gpus=1)(lambda: None).remote()
    with pytest.raises(EnoughError):
        awaited(answer, {"CPU": 8, "GPU": 1}, tell)
    ray.cancel(answer)
    assert all(line.startswith("waiting for a node with 8 CPUs and 1 GPU") for line in lines)


@pytest.mark.parametrize(
    ("statuses", "workers", "gpus", "waits"),
    [
        (["ERROR", "PENDING"], 1, 1, True),
        (["RUNNING", "PENDING"], 1, 1, False),
        (["PENDING"], 1, 0, False),  # there is room, if not yet a process
    ],
)
def test_a_sweep_of_which_no_trial_runs_says_what_it_waits_for(
    make_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
    statuses: list[str],
    workers: int,
    gpus: int,
    waits: bool,
) -> None:
    trial = make_trial(train={"micro_batch_size": 1}, workers=workers)
    config = {"trial": trial.model_dump(mode="json")}
    trials = [SimpleNamespace(status=status, config=config) for status in statuses]
    lines: list[str] = []
    cores = ray.cluster_resources()["CPU"]
    wait = WaitForRoom({"lora": {"GPU": gpus, "CPU": cores}}, None, lines.append)
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.0)
    wait.on_step_end(0, trials)  # type: ignore[arg-type]
    node = amounts_text({"GPU": 1, "CPU": cores} if gpus else {"CPU": cores})
    assert lines == [f"waiting for a node with {node}"] * waits
