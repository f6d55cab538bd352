"""A driver with made-up trials that kills itself: `python wandb_driver.py FOLDER MODE EVENTS`.

It keeps the real ledger and the real W&B mirror, and goes on from the ledger as a sweep does. It
dies by SIGKILL after so many events, which lie before, between and after what the recorder and
the mirror do; 0 lets it run to its end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from builders import base_record, running, sweep_config, sweep_record

from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialRecord, TrialStatus
from tune.config.sweep_config import WandbConfig
from tune.folder.recorder import Recorder
from tune.listeners import SweepListener
from tune.tracking.wandb_listener import WandbListener

STEPS = range(2, 26, 2)
STRENGTHS = (0.8, 0.4)  # of a trial that does not fail
REASONS = {1: "injected"}  # the second trial fails
TRIALS, SIDE_BY_SIDE = 4, 2
CHECKPOINT_EVERY = 6


class Mortal(SweepListener):
    """Dies after so many events."""

    left = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("trial_", "sweep_", "measured", "point_measured")):
            Mortal.left -= 1
            if Mortal.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)


def measurement(number: int, step: int) -> Measurement:
    metrics = {"train/loss": number + 1 / step, "forgetting/mean": 0.01 * step}
    return Measurement(step=step, total_steps=STEPS[-1], metrics=metrics, time=1000.0 + step)


def point(number: int, strength: float) -> Measurement:
    metrics = {"forgetting/mean": number + strength}
    return Measurement(step=STEPS[-1], strength=strength, metrics=metrics, time=2000 + strength)


def trial(folder: Path, number: int) -> TrialRecord:
    return running(number, output_dir=str(folder), base_dir=str(folder))


def run(folder: Path, mode: Any, pace: random.Random) -> list[str]:
    """Go on from the ledger to the end; what uploads the rest."""
    ledger = Ledger(folder)
    mirror = WandbListener(WandbConfig(mode=mode, project="tests"), folder)
    listeners = [Mortal(), Recorder(ledger), Mortal(), mirror, Mortal()]
    records = {record.number: record for record in ledger.trials()}
    finished = [r for r in records.values() if r.status is not TrialStatus.RUNNING]
    for listener in listeners:
        listener.sweep_started(sweep_record(sweep_config()), base_record(), finished)
    waiting = [n for n in range(TRIALS) if n not in {record.number for record in finished}]
    steps: dict[int, list[int]] = {}
    while waiting or steps:
        while waiting and len(steps) < SIDE_BY_SIDE:
            number = waiting.pop(0)
            steps[number] = start(ledger, listeners, records, number)
        number = pace.choice(sorted(steps))
        advance(listeners, records, number, steps[number].pop(0))
        if not steps[number]:
            del steps[number]
        time.sleep(pace.choice([0, 0, 0.3]))  # now and then W&B flushes
    for listener in listeners:
        listener.sweep_ended(ledger.trials())
    return mirror.upload_hints()


def start(
    ledger: Ledger, listeners: list[Any], records: dict[int, TrialRecord], number: int
) -> list[int]:
    """Start a trial, or go on from its newest checkpoint; the steps that it has before it."""
    record = records.get(number)
    checkpoint = 0
    if record is None:
        record = trial(ledger.folder.root, number)
    else:
        record = record.model_copy(update={"attempt": record.attempt + 1})
        steps = [m.step for m in ledger.measurements(number) if m.step % CHECKPOINT_EVERY == 0]
        checkpoint = max(steps, default=0)
    records[number] = record
    for listener in listeners:
        listener.trial_started(record)
    return [step for step in STEPS if step > checkpoint] or [STEPS[-1]]


def advance(listeners: list[Any], records: dict[int, TrialRecord], number: int, step: int) -> None:
    """A trial reports; after its last step its points are measured, and it ends."""
    last = measurement(number, step)
    record = records[number].model_copy(update={"last": last, "best": last.metrics})
    for listener in listeners:
        listener.measured(record, last)
    if step == STEPS[-1]:
        status = TrialStatus.FAILED if number in REASONS else TrialStatus.COMPLETE
        for strength in () if number in REASONS else STRENGTHS:
            scaled = point(number, strength)
            record = record.after(scaled)
            for listener in listeners:
                listener.point_measured(record, scaled)
        ending = {"status": status, "reason": REASONS.get(number), "ended": time.time()}
        record = record.model_copy(update=ending)
        for listener in listeners:
            listener.trial_ended(record)
    records[number] = record


if __name__ == "__main__":
    Mortal.left = int(sys.argv[3])
    print(*run(Path(sys.argv[1]), sys.argv[2], random.Random(sys.argv[3])), sep="\n")
