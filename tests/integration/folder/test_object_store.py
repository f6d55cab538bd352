"""A whole sweep in an object store: workers lose their node's disk, and nothing is lost."""

from __future__ import annotations

import logging
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SMALL
from killed_trials import ONE_TRIAL, HostKiller, Killer
from pyarrow import fs
from safetensors.torch import load_file

from trainables.evaluation.base_scores import read_items
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


def test_a_sweep_whose_trial_loses_its_node_ends_as_it_should_and_runs_only_once(
    load: Callable[..., SweepConfig], bucket: str, tmp_path: Path
) -> None:
    location = f"{bucket}/sweeps/quickstart"
    killer = NodeLoser(step=10)
    Sweep(load(*TWO_TRIALS), location, f"{bucket}/sweeps/.base").run([killer])

    ledger = Ledger(location)
    first, second = ledger.trials()
    assert [r.number for r in killer.interrupted] == [0, 1]
    assert [r.status for r in (first, second)] == [TrialStatus.COMPLETE] * 2
    assert [r.attempt for r in (first, second)] == [2, 2]
    for record in (first, second):
        log = ledger.storage.read_log(f"trials/{record.number:04d}/metrics.jsonl")
        steps = [m.step for m in read_lines(log, "metrics.jsonl").measurements]
        killed = next(i for i, step in enumerate(steps[1:]) if step <= steps[i])
        assert steps[: killed + 1] == list(range(1, steps[killed] + 1))
        # From the checkpoint of step 8, not anew; its evaluation is made up for where it was lost.
        assert steps[killed + 1 :] in (list(range(9, 17)), list(range(8, 17)))
        assert [m.step for m in ledger.measurements(record.number)] == list(range(1, 17))

        attempt = f"{location}/trials/{record.number:04d}/attempt_2"
        assert record.weights_dir == f"{attempt}/weights"
        weights = tmp_path / str(record.number)
        open_storage(record.weights_dir).fetch("", weights)
        assert (weights / "adapter_model.safetensors").stat().st_size > 0
        assert open_storage(attempt).children("") == ["items", "trial.log", "weights"]
        open_storage(attempt).fetch("items", weights / "items")
        assert read_items(weights / "items" / "step_00000016.jsonl")
        # A finished trial's measurements are one object.
        assert len(ledger.storage.children(f"trials/{record.number:04d}/metrics")) == 1
    assert list((node_cache() / "attempts").glob("*/attempt_*")) == []

    before = objects(location)
    arguments = [word for setting in (*SMALL, *TWO_TRIALS) for word in ("--set", setting)]
    assert main(["quickstart", "--output-dir", f"{bucket}/sweeps", *arguments]) == 0
    after = objects(location)
    mirrors = {"results.csv", "study.journal", "sweep.log"}
    assert set(after) - set(before) == mirrors
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"sweep.json"}  # which notes the command
    assert Ledger(location).trials() == [first, second]


@pytest.mark.parametrize("slots", [pytest.param(2, marks=pytest.mark.slow), "auto"])
def test_trials_in_slots_leave_what_trials_by_themselves_leave(
    load: Callable[..., SweepConfig],
    bucket: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    slots: object,
) -> None:
    """Also where the host's process dies, and the other host goes on from its checkpoint."""
    caplog.set_level(logging.INFO, logger="tune.cluster.slot_hosts")
    together = (*TWO_TRIALS, "resources.max_concurrent=2", f"resources.lora.slots={slots}")
    location = f"{bucket}/slots_{slots}/quickstart"
    killer = HostKiller(step=10)
    Sweep(load(*together), location, f"{bucket}/slots/.base").run([killer])

    ledger = Ledger(location)
    assert killer.killed
    of_auto = re.search(r"2 hosts of 1 slots? \(passes by slots: 1: [\d.]+/s", caplog.text)
    assert bool(of_auto) == (slots == "auto")
    assert [r.status for r in ledger.trials()] == [TrialStatus.COMPLETE] * 2
    assert 2 in {r.attempt for r in ledger.trials()}
    for record in ledger.trials():
        assert [m.step for m in ledger.measurements(record.number)] == list(range(1, 17))
        attempt = f"{location}/trials/{record.number:04d}/attempt_{record.attempt}"
        assert record.weights_dir == f"{attempt}/weights"
        assert open_storage(attempt).children("") == ["items", "trial.log", "weights"]
        open_storage(record.weights_dir).fetch("", tmp_path / str(record.number))
        load_file(tmp_path / str(record.number) / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_group_publishes_its_best_weights_and_leaves_nothing_on_its_node(
    load: Callable[..., SweepConfig], bucket: str, tmp_path: Path
) -> None:
    location = f"{bucket}/group/quickstart"
    of_two = (*ONE_TRIAL, "resources.lora.workers=2", "train.micro_batch_size=4")
    drift = "objectives=[{metric: kl/base_to_tuned, mode: min}]"  # is least at the first evaluation
    Sweep(load(*of_two, drift, "constraints=[]"), location, f"{bucket}/group/.base").run([])
    (record,) = Ledger(location).trials()
    assert record.status is TrialStatus.COMPLETE
    attempt = f"{location}/trials/0000/attempt_1"
    assert record.best_weights_dir == f"{attempt}/best"
    logs = ["trial.log", "weights", "worker_0.log", "worker_1.log"]
    assert open_storage(attempt).children("") == ["best", "items", *logs]
    for name in ("best", "weights"):
        open_storage(f"{attempt}/{name}").fetch("", tmp_path / name)
    best, last = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("best", "weights")
    )
    assert best.keys() == last.keys()
    assert any((best[name] != last[name]).any() for name in best)
    assert left_on_the_node() == []


@pytest.mark.parametrize(
    "trains",
    [
        pytest.param("lora.workers=1", marks=pytest.mark.slow),
        pytest.param("lora.workers=2", marks=pytest.mark.slow),
        "lora.slots=2",
    ],
)
def test_a_trial_that_is_stopped_leaves_nothing_on_its_node_and_no_weights_in_the_store(
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
