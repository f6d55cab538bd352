"""Trials of two GPUs and of eight on a cluster of 64: all run, and nothing is left of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import SMALL
from crowd import Driver, cluster_of, gpus_held, gpus_of, looked_at, most_gpus, span
from ray.cluster_utils import Cluster

from trainables.records.schema import TrialStatus

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("base_dir"),
]

NODES, GPUS = 8, 8
MIXED = (
    *SMALL,
    "sampler=random",
    "confirm=null",
    "wandb.mode=disabled",
    "resources.lora.workers=2",
    "resources.lora.gpus_per_worker=1",
    "resources.full.workers=8",
    "resources.full.gpus_per_worker=1",
    "train.micro_batch_size=1",
    "early_stopping.metrics={in_domain/acc_mean: 1}",
)


@pytest.fixture(scope="module")
def many_gpus() -> Iterator[Cluster]:
    with cluster_of(NODES, GPUS) as cluster:
        yield cluster


def test_trials_of_all_sizes_run_in_turn(
    many_gpus: Cluster, tmp_path: Path, base_cache: Path
) -> None:
    """More than there are GPUs for: the cluster is full, and no trial waits for ever."""
    # A trial's process takes two seconds of a core to start. What pauses for a second at each step
    # holds its GPUs for longer, so that many train at once, and leaves the cores to those starts.
    pause_s = 1.0
    with looked_at(partial(gpus_held, many_gpus)) as held:
        driver = Driver(
            many_gpus.address,
            tmp_path / "s",
            base_cache,
            pause_s,
            MIXED,
            *("--num-trials", "200"),
        )
        records, left = driver.wait(timeout_s=500)
    assert [record.number for record in records] == list(range(200))
    statuses = {record.status for record in records}
    assert {TrialStatus.COMPLETE, TrialStatus.STOPPED_EARLY} <= statuses
    assert TrialStatus.RUNNING not in statuses
    assert {gpus_of(record) for record in records} == {2, 8}
    assert most_gpus(records) <= NODES * GPUS
    assert max(held) == NODES * GPUS
    assert left == []


def test_two_sweeps_of_one_name_share_a_cluster(
    many_gpus: Cluster, tmp_path: Path, base_cache: Path
) -> None:
    limits = (8, 20)
    drivers = [
        Driver(
            many_gpus.address,
            tmp_path / str(limit),
            base_cache,
            0.3,
            MIXED,
            *("--num-trials", "20", "--max-gpus", str(limit)),
        )
        for limit in limits
    ]
    ran = [driver.wait(timeout_s=500) for driver in drivers]
    for limit, (records, left) in zip(limits, ran, strict=True):
        assert [record.number for record in records] == list(range(20))
        assert 8 <= most_gpus(records) <= limit
        for record in records:
            assert str(tmp_path / str(limit)) in record.config.output_dir
        assert left == []
    spans = [span(records) for records, _ in ran]
    assert max(start for start, _ in spans) < min(end for _, end in spans)  # side by side
