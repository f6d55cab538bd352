"""A whole sweep in an object store: workers lose their node's disk, and nothing is lost."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from killed_trials import ONE_TRIAL, HostKiller, Killer
from pyarrow import fs
from safetensors.torch import load_file
from small_trials import SMALL

from trainables.records.ledger import Ledger
from trainables.records.metrics_file import read_lines
from trainables.records.schema import TrialStatus
from trainables.storage.locations import node_cache
from trainables.storage.object_storage import ObjectStorage
from trainables.storage.storage import open_storage
from tune.cli import main
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.records.schema import TrialRecord
    from tune.config.sweep_config import SweepConfig

pytestmark = [pytest.mark.timeout(420), pytest.mark.usefixtures("cluster")]
TWO_TRIALS = (*ONE_TRIAL, "budget.trials=2", "resources.max_concurrent=1", "wandb.mode=disabled")


class NodeLoser(Killer):
    """Kills the trial's process, and takes away what it had on its node's disk."""

    def trial_interrupted(self, record: TrialRecord) -> None:
        super().trial_interrupted(record)
        with suppress(FileNotFoundError):  # it had nothing yet
            shutil.rmtree(node_cache() / "attempts")


def objects(location: str) -> dict[str, tuple[int, int]]:
    """Size and time of writing of all there is in the store."""
    storage = ObjectStorage(location)
    prefix = str(storage._prefix)
    found = storage._filesystem.get_file_info(fs.FileSelector(prefix, recursive=True))
    return {
        info.path.removeprefix(f"{prefix}/"): (info.size, info.mtime_ns)
        for info in found
        if info.is_file
    }


def test_trial_that_loses_its_node_goes_on_and_a_finished_sweep_runs_nothing(
    load: Callable[..., SweepConfig], bucket: str, tmp_path: Path
) -> None:
    location = f"{bucket}/sweeps/quickstart"
    killer = NodeLoser(step=10)
    changes = (*ONE_TRIAL, "wandb.mode=disabled")
    Sweep(load(*changes), location, f"{bucket}/sweeps/.base").run([killer])

    ledger = Ledger(location)
    (record,) = ledger.trials()
    assert [r.number for r in killer.interrupted] == [0]
    assert (record.status, record.attempt) == (TrialStatus.COMPLETE, 2)
    log = ledger.storage.read_log("trials/0000/metrics.jsonl")
    steps = [m.step for m in read_lines(log, "metrics.jsonl").measurements]
    killed = next(i for i, step in enumerate(steps[1:]) if step <= steps[i])
    assert steps[: killed + 1] == list(range(1, steps[killed] + 1))
    # From the checkpoint of step 8; its evaluation is repeated if it was lost.
    assert steps[killed + 1 :] in (list(range(9, 17)), list(range(8, 17)))
    assert [m.step for m in ledger.measurements(0)] == list(range(1, 17))
    attempt = f"{location}/trials/0000/attempt_2"
    assert record.weights_dir == f"{attempt}/weights"
    open_storage(record.weights_dir).fetch("", tmp_path / "weights")
    load_file(tmp_path / "weights" / "adapter_model.safetensors")
    assert open_storage(attempt).children("") == ["items", "trial.log", "weights"]
    assert ledger.items(record)
    assert len(ledger.storage.children("trials/0000/metrics")) == 1  # it was closed
    assert list((node_cache() / "attempts").glob("*/attempt_*")) == []

    before = objects(location)
    arguments = [word for setting in (*SMALL, *changes) for word in ("--set", setting)]
    assert main(["quickstart", "--output-dir", f"{bucket}/sweeps", *arguments]) == 0
    after = objects(location)
    assert set(after) - set(before) == {"results.csv", "study.journal", "sweep.log"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"sweep.json"}  # which notes the command
    assert Ledger(location).trials() == [record]


@pytest.mark.slow
def test_packed_trials_that_lose_their_host_leave_what_others_leave(
    load: Callable[..., SweepConfig], bucket: str, tmp_path: Path
) -> None:
    together = (*TWO_TRIALS, "resources.max_concurrent=2", "resources.lora.slots=2")
    location = f"{bucket}/slots/quickstart"
    killer = HostKiller(step=10)
    Sweep(load(*together), location, f"{bucket}/slots/.base").run([killer])

    ledger = Ledger(location)
    assert killer.killed
    assert [r.status for r in ledger.trials()] == [TrialStatus.COMPLETE] * 2
    assert 2 in {r.attempt for r in ledger.trials()}
    for record in ledger.trials():
        assert [m.step for m in ledger.measurements(record.number)] == list(range(1, 17))
        attempt = f"{location}/trials/{record.number:04d}/attempt_{record.attempt}"
        assert record.weights_dir == f"{attempt}/weights"
        assert open_storage(attempt).children("") == ["items", "trial.log", "weights"]
        open_storage(record.weights_dir).fetch("", tmp_path / str(record.number))
        load_file(tmp_path / str(record.number) / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "trains",
    ["lora.workers=1", "lora.workers=2", "lora.slots=2"],
)
@pytest.mark.slow
def test_stopped_trial_leaves_nothing_on_its_node_and_no_weights_in_the_store(
    trains: str, load: Callable[..., SweepConfig], bucket: str
) -> None:
    location = f"{bucket}/stopped_{trains[-9:]}/quickstart"
    config = load(
        *TWO_TRIALS,
        "constraints=[train/tokens_seen <= 1]",  # a bound that no trial keeps beyond the first rung
        "early_stopping={first_rung: 0.3}",
        "train.micro_batch_size=4",
        f"resources.{trains}",
    )
    Sweep(config, location, f"{bucket}/stopped/.base").run([])
    records = Ledger(location).trials()
    assert [r.status for r in records] == [TrialStatus.STOPPED_EARLY] * 2
    assert all(r.last and r.last.step < 16 for r in records)
    deadline = time.monotonic() + 60  # workers end by themselves
    while left_on_the_node() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_on_the_node() == []
    for record in records:  # after the first, the next trial has its process and its workers
        assert "best" not in open_storage(record.config.output_dir).children("")


def left_on_the_node() -> list[Path]:
    return [
        path
        for kind in ("attempts", "waiting")
        for path in (node_cache() / kind).glob("*/attempt*")
    ]
