"""What trials hold of a cluster, and how many of them fit it."""

from __future__ import annotations

from typing import Any

import pytest
from builders import sweep_config
from faults import faults

from trainables.workers.gpu_types import counted_by_type
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import (
    check_resources,
    gpus_per_worker,
    held_by_worker,
    max_concurrent,
)

L40S = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L40S": 1.0}
H100 = {"CPU": 192.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
MIXED = [counted_by_type(node) for node in (*[L40S] * 4, H100)]
MIXED_CLUSTER = {"CPU": 224.0, "GPU": 12.0, "GPU:L40S": 4.0, "GPU:H100": 8.0}


def resources(**changes: Any) -> SweepConfig:
    return sweep_config(resources=changes, train={"batch_size": 32})


def test_a_worker_holds_a_gpu_where_there_are_any() -> None:
    for gpus, expected in ((0.0, 0), (2.0, 1)):
        assert gpus_per_worker(resources(), "lora", {"CPU": 4.0, "GPU": gpus}) == expected


def test_every_method_and_kind_that_does_not_fit_is_named() -> None:
    config = resources(
        lora={"cpus_per_worker": 8}, full={"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 1}
    )
    cpus, gpus = faults(check_resources, config, {"CPU": 4.0, "GPU": 2.0}, [], [])
    assert cpus.field == "resources.lora.cpus_per_worker"
    assert "8 CPUs (1 x 8), the cluster has 4" in cpus.rule
    assert gpus.field == "resources.full.gpus_per_worker"
    assert "4 GPUs (4 x 1), the cluster has 2" in gpus.rule
    assert "resources.full.workers" in gpus.remedy
    check_resources(resources(full={"workers": 4}), {"CPU": 4.0}, [{"CPU": 4.0}], [])


def test_a_worker_that_fits_no_node_is_refused_though_the_cluster_has_enough() -> None:
    node, cluster = {"CPU": 8.0, "GPU": 3.0}, {"CPU": 24.0, "GPU": 9.0}
    config = resources(full={"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 5})
    (fault,) = faults(check_resources, config, cluster, [node] * 3, [])
    assert fault.field == "resources.full"
    assert "room for 3 (3 of 3 GPUs and 8 CPUs)" in fault.rule
    check_resources(config, cluster, [node] * 4, [])
    check_resources(config, cluster, [node] * 3, [{"CPU": 96, "GPU": 8}])  # which can be started


def test_a_method_may_ask_for_gpus_of_one_type() -> None:
    config = resources(
        lora={"accelerator_type": "L40S"}, full={"accelerator_type": "H100", "workers": 4}
    )
    assert held_by_worker(config, "full", {}) == {"GPU": 1, "CPU": 1, "GPU:H100": 1}
    check_resources(config, MIXED_CLUSTER, MIXED, [])
    assert max_concurrent(config, MIXED_CLUSTER) == 4 + 2  # they take none from each other


def test_more_gpus_of_a_type_than_the_cluster_has_are_refused() -> None:
    l40s = {"accelerator_type": "L40S"}
    config = resources(lora=l40s, full=l40s | {"workers": 8})
    (fault,) = faults(check_resources, config, MIXED_CLUSTER, MIXED, [])
    assert fault.field == "resources.full.accelerator_type"
    assert "8 L40S GPUs (8 x 1), the cluster has 4" in fault.rule
    assert "H100, L40S" in fault.remedy


@pytest.mark.parametrize(
    ("lora", "cluster", "expected"),
    [
        ({"cpus_per_worker": 3}, {"CPU": 8.0}, 2),
        ({"gpus_per_worker": 0.1}, {"CPU": 16.0, "GPU": 1.0}, 10),
        ({"gpus_per_worker": 0.6}, {"CPU": 16.0, "GPU": 4.0}, 4),  # no two of them on one
        ({"workers": 2}, {"CPU": 8.0, "GPU": 4.0}, 2),
    ],
)
def test_as_many_trials_run_as_fit(
    lora: dict[str, Any], cluster: dict[str, float], expected: int
) -> None:
    space = {"lora": {"rank": 4, "alpha_ratio": 2, "learning_rate": 1e-4}}
    config = sweep_config(resources={"lora": lora}, search=space)
    assert max_concurrent(config, cluster) == expected
    bounded = sweep_config(resources={"lora": lora, "max_concurrent": 1}, search=space)
    assert max_concurrent(bounded, cluster) == 1
