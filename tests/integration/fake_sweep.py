"""Drivers of a real sweep under Tune whose trials only pretend to train; made to be killed.

    python fake_sweep.py ADDRESS

For each line `FOLDER BASE_CACHE OVERRIDE...` (as JSON) on its input it forks a driver, prints its
process id, and prints its exit code when it has ended. The fork spares the imports.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import optuna  # noqa: F401 - loaded before the fork
import ray
import ray.tune

from trainables.config import TrialConfig
from trainables.records.schema import Measurement, Outcome, TrialRecord, TrialStatus
from trainables.workers.reporters import MEASUREMENT, OUTCOME
from tune.config.sweep_file import load_sweep
from tune.listeners import SweepListener
from tune.sweep import Sweep

STEPS = 6
PAUSE_S = 0.03


class Started(SweepListener):
    """Numbers of the trials that ran, in order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def trial_started(self, record: TrialRecord) -> None:
        self.numbers.append(record.number)


def fake_trial(config: dict[str, Any]) -> None:
    """Measures what its point and step decide, and goes on from the checkpoints it finds."""
    trial = TrialConfig.model_validate(config["trial"])
    attempt = Path(trial.output_dir)
    attempt.mkdir(parents=True, exist_ok=True)
    for step in range(_done(trial) + 1, STEPS + 1):
        time.sleep(PAUSE_S)
        with (attempt / "steps").open("a") as executed:
            executed.write(f"{step}\n")
        ray.tune.report({MEASUREMENT: _measurement(trial, step).model_dump()})
        unfinished = attempt / ".checkpoint"
        unfinished.write_text(str(step))
        unfinished.replace(attempt / "checkpoint")
    ray.tune.report({OUTCOME: _outcome(trial).model_dump(mode="json")})


def _done(trial: TrialConfig) -> int:
    checkpoints = [Path(folder) / "checkpoint" for folder in trial.earlier_attempts]
    return max((int(file.read_text()) for file in checkpoints if file.exists()), default=0)


def _measurement(trial: TrialConfig, step: int) -> Measurement:
    effort = (
        math.log10(trial.learning_rate * 1e5)
        + (trial.capacity.number if trial.capacity else 32) / 16
    )
    learned = effort * step / STEPS
    metrics = {
        "train/loss": 2 * math.exp(-learned),
        "in_domain/acc_mean": 1 - math.exp(-learned),
        "forgetting/mean": 0.01 * learned**2,
        "ood/acc_mean": 1 - math.exp(-learned / 2),
    }
    return Measurement(step=step, total_steps=STEPS, metrics=metrics, time=time.time())


def _outcome(trial: TrialConfig) -> Outcome:
    if trial.number % 7 == 6:
        return Outcome(status=TrialStatus.DIVERGED, reason="the loss is nan")
    if trial.number % 9 == 5:
        return Outcome(status=TrialStatus.FAILED, reason="a bug in the trial")
    return Outcome(status=TrialStatus.COMPLETE, weights_dir=trial.weights_dir)


def drive(address: str, folder: str, base_cache: str, *overrides: str) -> None:
    """One start of the command."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    config = load_sweep("quickstart", list(overrides))
    sweep = Sweep(config, Path(folder), Path(base_cache), trainable=fake_trial)
    sweep.run([SweepListener()])


def main() -> None:
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            os.dup2(2, 1)  # what Ray prints is no answer
            try:
                drive(sys.argv[1], *json.loads(line))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
