"""What follows a trial that was stopped early: the next one in its process, or the sweep's end."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import ray
import ray.tune

from trainables.config import TrialConfig
from trainables.records.schema import Measurement, Outcome, TrialRecord, TrialStatus
from trainables.storage.disk import is_disk_full
from trainables.workers import reporters
from trainables.workers.reporters import OUTCOME
from tune.folder.recorder import Recorder
from tune.listeners import SweepListener
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster", "base_dir")

ONE_AFTER_ANOTHER = (
    "search={lora: {rank: 8, alpha: 16, learning_rate: {low: 1.0e-4, high: 1.0e-3}}}",
    "sampler=random",
    "confirm=null",
    "budget.trials=3",
    "resources.max_concurrent=1",
    "early_stopping={metrics: {train/loss: -1}, reduction_factor: 2, first_rung: 0.5}",
)


@pytest.fixture
def sweep(load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path) -> Sweep:
    """Each trial is worse than the one before; of those stopped, 2 leaves slowly and 1 never."""

    def slow_to_stop(config: dict[str, Any]) -> None:
        trial = TrialConfig.model_validate(config["trial"])
        metrics = {"train/loss": 1.0 + trial.number, "pid": float(os.getpid())}
        reporters.MINUTES_TO_LEAVE = 6 / 60
        reporter = reporters.Watched(trial, reporters.report_to_tune)
        try:
            for step in (1, 2):
                now = time.time()
                reporter.report(Measurement(step=step, total_steps=2, metrics=metrics, time=now))
        except SystemExit:
            time.sleep({1: 3.0, 2: 3600.0}.get(trial.number, 0.0))
            raise
        outcome = Outcome(status=TrialStatus.COMPLETE)
        ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})

    config = load(*ONE_AFTER_ANOTHER, "budget.trials=4")
    return Sweep(config, tmp_path, base_cache, trainable=slow_to_stop)


def test_the_next_trial_waits_for_a_slow_one_and_goes_on_elsewhere_from_one_that_stays(
    sweep: Sweep,
) -> None:
    records = sweep.run([SweepListener()]).records
    stopped = TrialStatus.STOPPED_EARLY
    assert [r.status for r in records] == [TrialStatus.COMPLETE, stopped, stopped, stopped]
    assert [(r.attempt, r.failures) for r in records] == [(1, 0), (1, 0), (1, 0), (2, 0)]
    first, second, third, fourth = (record.metric("pid") for record in records)
    assert first == second == third != fourth


def test_the_sweep_ends_if_the_end_of_a_stopped_trial_cannot_be_recorded(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(recorder: Recorder, record: TrialRecord) -> None:
        if record.status is TrialStatus.STOPPED_EARLY:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Recorder, "trial_ended", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        sweep.run([SweepListener()])
    assert is_disk_full(caught.value)
