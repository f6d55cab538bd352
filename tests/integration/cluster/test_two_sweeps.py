"""Two sweeps of one name run side by side on one cluster, each in its folder and its bound."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SMALL
from crowd import Driver, cluster_of, gpus_of, most_gpus, span

from trainables.records.schema import TrialStatus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("base_dir")]

TRIALS = 5
LIMITS = (2, 4)
PAUSE_S = 0.2
SETTINGS = (
    *SMALL,
    "sampler=random",
    "confirm=null",
    "wandb.mode=disabled",
    "resources.lora.gpus_per_worker=1",
    "resources.full.workers=2",
    "resources.full.gpus_per_worker=1",
    "train.micro_batch_size=1",
)


@pytest.mark.slow
def test_two_sweeps_of_one_name_keep_to_their_gpus_and_folders(
    tmp_path: Path, base_cache: Path
) -> None:
    """More than both may hold is free all the time."""
    with cluster_of(nodes=2, gpus=4) as cluster:
        drivers = [
            Driver(
                cluster.address,
                tmp_path / str(limit),
                base_cache,
                PAUSE_S,
                SETTINGS,
                *("--num-trials", str(TRIALS), "--max-gpus", str(limit)),
            )
            for limit in LIMITS
        ]
        ran = [driver.wait(timeout_s=200) for driver in drivers]
    for limit, driver, (records, left) in zip(LIMITS, drivers, ran, strict=True):
        assert [record.number for record in records] == list(range(TRIALS))
        assert TrialStatus.RUNNING not in {record.status for record in records}
        assert {gpus_of(record) for record in records} == {1, 2}
        assert 2 <= most_gpus(records) <= limit
        folders = {Path(record.config.output_dir) for record in records}
        assert folders == set(driver.ledger.folder.root.glob("trials/*/attempt_1"))
        assert left == []
    first, second = (span(records) for records, _ in ran)
    assert max(first[0], second[0]) < min(first[1], second[1])  # side by side
