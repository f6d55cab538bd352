"""What trials hold of a cluster, and how many of them fit it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from builders import sweep_config
from faults import faults

from trainables.errors import UserError
from trainables.workers.gpu_types import counted_by_type
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import (
    check_resources,
    gpus_per_worker,
    held_by_worker,
    max_concurrent,
    workers_on,
)


def resources(**changes: Any) -> SweepConfig:
    return sweep_config(resources=changes)


@pytest.mark.parametrize(
    ("configured", "cluster", "expected"),
    [
        (None, {"CPU": 4.0}, 0),
        (None, {"CPU": 4.0, "GPU": 2.0}, 1),
        (0.5, {"CPU": 4.0, "GPU": 1.0}, 0.5),
        (0, {"CPU": 4.0, "GPU": 8.0}, 0),
    ],
)
def test_a_worker_holds_a_gpu_where_there_are_any(
    configured: float | None, cluster: dict[str, float], expected: float
) -> None:
    config = resources(lora={"gpus_per_worker": configured})
    assert gpus_per_worker(config, "lora", cluster) == expected


def test_what_does_not_fit_the_cluster_is_refused_for_each_method_and_kind() -> None:
    config = resources(
        lora={"cpus_per_worker": 8}, full={"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 1}
    )
    with pytest.raises(UserError) as caught:
        check_resources(config, {"CPU": 4.0, "GPU": 2.0}, [], [])
    assert list(map(str, caught.value.faults)) == [
        "resources.lora.cpus_per_worker: a trial asks for 8 CPUs (1 x 8), the cluster has 4; "
        "lower it, or add nodes",
        "resources.full.gpus_per_worker: a trial asks for 4 GPUs (4 x 1), the cluster has 2; "
        "lower it or resources.full.workers, or add nodes",
    ]


@pytest.mark.parametrize(
    ("gpus", "limit", "told"),
    [
        (4, 8, "the cluster has 4; lower it or resources.full.workers, or add nodes"),
        (
            3,
            4,
            "the cluster has 3; lower it or resources.full.workers, or add nodes and raise "
            "resources.max_gpus",
        ),
        (
            8,
            4,
            "the cluster has 8, of which the sweep may hold 4; lower it or resources.full.workers, "
            "or raise resources.max_gpus",
        ),
        (
            6,
            4,
            "the cluster has 6, of which the sweep may hold 4; lower it or resources.full.workers, "
            "or add nodes and raise resources.max_gpus",
        ),
    ],
)
def test_what_is_told_of_gpus_would_help(gpus: int, limit: int, told: str) -> None:
    asked = {"full": {"workers": 8, "gpus_per_worker": 1}, "max_gpus": limit}
    config = sweep_config(resources=asked, train={"batch_size": 32})
    cluster = {"CPU": 64.0, "GPU": float(gpus)}
    (fault,) = faults(check_resources, config, cluster, [cluster], [])
    asks = "resources.full.gpus_per_worker: a trial asks for 8 GPUs (8 x 1), "
    assert str(fault) == asks + told


def test_what_fits_is_not_refused() -> None:
    check_resources(resources(full={"workers": 4}), {"CPU": 4.0}, [{"CPU": 4.0}], [])


@pytest.mark.parametrize(
    ("gpus", "of_lora", "is_told"), [(0, None, True), (8, 0, False), (8, None, False)]
)
def test_gpu_hours_that_no_trial_would_spend_are_refused(
    gpus: int, of_lora: float | None, is_told: bool
) -> None:
    config = sweep_config(budget={"gpu_hours": 5}, resources={"lora": {"gpus_per_worker": of_lora}})
    cluster = {"CPU": 8.0, "GPU": float(gpus)}
    with pytest.raises(UserError, match="no trial of this sweep") if is_told else nullcontext():
        check_resources(config, cluster, [cluster], [])


def test_a_worker_that_fits_no_node_is_refused_though_the_cluster_has_enough() -> None:
    node, cluster = {"CPU": 8.0, "GPU": 3.0}, {"CPU": 24.0, "GPU": 9.0}
    config = resources(full={"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 5})
    with pytest.raises(UserError) as caught:
        check_resources(config, cluster, [node] * 3, [])
    assert list(map(str, caught.value.faults)) == [
        "resources.full: a trial asks for 4 workers of 1 GPU and 5 CPUs each, the nodes have room "
        "for 3 (3 of 3 GPUs and 8 CPUs); a worker stays within one node: lower what it asks for, "
        "or add nodes with more"
    ]
    check_resources(config, cluster, [node] * 4, [])
    check_resources(config, cluster, [node] * 3, [{"CPU": 96, "GPU": 8}])
    with pytest.raises(UserError, match="room for 3"):
        check_resources(config, cluster, [node] * 3, [{"CPU": 96}])


L40S = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L40S": 1.0}
H100 = {"CPU": 192.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
MIXED = [counted_by_type(node) for node in (*[L40S] * 4, H100)]
MIXED_CLUSTER = {"CPU": 224.0, "GPU": 12.0, "GPU:L40S": 4.0, "GPU:H100": 8.0}


def test_a_method_may_ask_for_gpus_of_one_type() -> None:
    config = resources(
        lora={"accelerator_type": "L40S"}, full={"accelerator_type": "H100", "workers": 4}
    )
    assert held_by_worker(config, "full", {}) == {"GPU": 1, "CPU": 1, "GPU:H100": 1}
    check_resources(config, MIXED_CLUSTER, MIXED, [])
    assert max_concurrent(config, MIXED_CLUSTER) == 4 + 2  # they take none from each other


def test_a_worker_stays_within_a_node() -> None:
    head = {"CPU": 4.0}
    machine = {"CPU": 16.0, "GPU": 4.0}
    assert workers_on({"CPU": 1, "GPU": 1.0}, [head, machine, machine]) == 8
    assert workers_on({"CPU": 6, "GPU": 1.0}, [head, machine, machine]) == 4
    assert workers_on({"CPU": 1, "GPU": 0.0}, [head]) == 4


def test_gpus_of_a_type_that_the_cluster_lacks_are_refused() -> None:
    any_of_it = {"accelerator_type": "L40S"}
    asked = {"lora": any_of_it, "full": any_of_it | {"workers": 8}}
    config = sweep_config(resources=asked, train={"batch_size": 32})
    (fault,) = faults(check_resources, config, MIXED_CLUSTER, MIXED, [])
    assert str(fault) == (
        "resources.full.accelerator_type: a trial asks for 8 L40S GPUs (8 x 1), the cluster has 4; "
        "ask for fewer, or for another type; the cluster's: H100, L40S"
    )
    crowded = resources(lora=any_of_it, full=any_of_it | {"workers": 4, "cpus_per_worker": 16})
    with pytest.raises(UserError, match="4 workers of 16 CPUs and 1 L40S GPU each"):
        check_resources(crowded, MIXED_CLUSTER, MIXED, [])


def test_a_type_of_gpus_is_for_who_has_gpus() -> None:
    with pytest.raises(ValueError, match=r"lora\.gpus_per_worker: must be above 0 on H100, got 0"):
        resources(lora={"accelerator_type": "H100", "gpus_per_worker": 0})


def test_where_one_method_has_a_type_the_other_has_one() -> None:
    """Else its trials, or hosts of its slots, might hold all GPUs that the first one waits for."""
    alone = {"full": {"accelerator_type": "H100"}}
    with pytest.raises(ValueError, match=r"lora\.accelerator_type: must be given as resources"):
        resources(**alone)
    resources(**alone, lora={"gpus_per_worker": 0})


@pytest.mark.parametrize(
    ("lora", "cluster", "expected"),
    [
        ({}, {"CPU": 4.0}, 4),
        ({"cpus_per_worker": 3}, {"CPU": 8.0}, 2),
        ({}, {"CPU": 16.0, "GPU": 2.0}, 2),
        ({"gpus_per_worker": 0.1}, {"CPU": 16.0, "GPU": 1.0}, 10),
        ({"gpus_per_worker": 0.3}, {"CPU": 16.0, "GPU": 1.0}, 3),
        ({"gpus_per_worker": 0.6}, {"CPU": 16.0, "GPU": 4.0}, 4),  # no two of them on one
        ({"workers": 2}, {"CPU": 8.0, "GPU": 4.0}, 2),
    ],
)
def test_as_many_trials_run_as_fit(
    lora: dict[str, Any], cluster: dict[str, float], expected: int
) -> None:
    config = sweep_config(
        resources={"lora": lora},
        train={"batch_size": 24},
        search={"lora": {"rank": 4, "alpha_ratio": 2, "learning_rate": 1e-4}},
    )
    assert max_concurrent(config, cluster) == expected


def test_a_configured_number_bounds_the_trials_side_by_side() -> None:
    assert max_concurrent(resources(max_concurrent=2), {"CPU": 8.0}) == 2
    assert max_concurrent(resources(max_concurrent=20), {"CPU": 8.0}) == 8
