"""Trials of two GPUs and of eight on a cluster of 64: all run, and nothing is left of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from trainables.ledger import Ledger
from trainables.records import TrialRecord, TrialStatus

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

CROWD = Path(__file__).with_name("crowd.py")
NODES, GPUS = 8, 8
MIXED = (
    "sampler=random",
    "confirm=null",
    "wandb.mode=disabled",
    "resources.lora.gpus_per_worker=2",
    "resources.full.workers=8",
    "resources.full.gpus_per_worker=1",
    "train.batch_size=8",
    "train.micro_batch_size=1",
    "early_stopping.metrics={in_domain/acc_mean: 1}",
)


@pytest.fixture(scope="module")
def many_gpus() -> Iterator[str]:
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "resources": {"driver": 1}})
    for _ in range(NODES):
        cluster.add_node(num_cpus=GPUS, num_gpus=GPUS, object_store_memory=80 << 20)
    yield cluster.address
    cluster.shutdown()


class Driver:
    """A sweep in a process of its own."""

    def __init__(self, address: str, folder: Path, cache: Path, *overrides: str) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, CROWD, address, folder, cache, *MIXED, *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def records(self) -> tuple[list[TrialRecord], list[str]]:
        """Its trials, and the placement groups it left, once it has ended."""
        try:
            out, err = self._process.communicate(timeout=500)
        finally:
            self._process.kill()
        assert self._process.returncode == 0, err
        return Ledger(self.folder).trials(), json.loads(out.splitlines()[-1])


def gpus_of(record: TrialRecord) -> float:
    return record.config.workers * record.config.gpus_per_worker


def most_gpus(records: list[TrialRecord]) -> float:
    """Held together at any time, by the trials' records."""
    changes = [(record.started, gpus_of(record)) for record in records]
    changes += [(record.ended or 0.0, -gpus_of(record)) for record in records]
    held = [sum(gpus for at, gpus in changes if at <= time) for time, _ in changes]
    return max(held)


def test_trials_of_all_sizes_run_in_turn(
    many_gpus: str, tmp_path: Path, base_dir: Path, base_cache: Path
) -> None:
    records, left = Driver(many_gpus, tmp_path / "s", base_cache, "budget.trials=200").records()
    assert left == []
    assert len(records) == 200
    assert {gpus_of(record) for record in records} == {2, 8}
    assert TrialStatus.STOPPED_EARLY in {record.status for record in records}
    assert all(record.ended for record in records)
    assert most_gpus(records) <= NODES * GPUS


def test_two_sweeps_of_one_name_share_a_cluster(
    many_gpus: str, tmp_path: Path, base_dir: Path, base_cache: Path
) -> None:
    limits = (8, 20)
    drivers = [
        Driver(
            many_gpus,
            tmp_path / str(limit) / "quickstart",
            base_cache,
            "budget.trials=20",
            f"resources.max_gpus={limit}",
        )
        for limit in limits
    ]
    ran = [driver.records() for driver in drivers]
    for limit, (records, _) in zip(limits, ran, strict=True):
        assert [record.number for record in records] == list(range(20))
        assert 8 <= most_gpus(records) <= limit
        for record in records:
            assert str(tmp_path / str(limit)) in record.config.output_dir
    spans = [(min(r.started for r in rs), max(r.ended or 0 for r in rs)) for rs, _ in ran]
    assert max(start for start, _ in spans) < min(end for _, end in spans)  # side by side
