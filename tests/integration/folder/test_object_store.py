"""A whole sweep in an object store: workers lose their node's disk, and nothing is lost."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from killed_trials import ONE_TRIAL, Killer
from safetensors.torch import load_file

from trainables.records.ledger import Ledger
from trainables.records.metrics_file import read_lines
from trainables.records.schema import TrialStatus
from trainables.storage.locations import node_cache
from trainables.storage.storage import open_storage
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.records.schema import TrialRecord
    from tune.config.sweep_config import SweepConfig

pytestmark = [pytest.mark.timeout(420), pytest.mark.usefixtures("cluster")]


class NodeLoser(Killer):
    """Kills the trial's process, and takes away what it had on its node's disk."""

    def trial_interrupted(self, record: TrialRecord) -> None:
        super().trial_interrupted(record)
        with suppress(FileNotFoundError):  # it had nothing yet
            shutil.rmtree(node_cache() / "attempts")


@pytest.mark.slow
def test_trial_that_loses_its_node_goes_on(
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
