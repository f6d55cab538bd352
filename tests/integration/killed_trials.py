"""What kills trials under way, and what they have to measure all the same."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
from measured import by_step

from tune.listeners import SweepListener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainables.records.ledger import Ledger
    from trainables.records.schema import Measurement, TrialRecord

ONE_TRIAL = (
    "search={lora: {rank: 4, alpha: 8, dropout: 0.2, learning_rate: 1.0e-3}}",
    "budget.trials=1",
    "sampler=random",
    "train.steps=16",
    "train.report_every=4",
)


def kill_trial_processes() -> int:
    """SIGKILL to every trial process of this session's cluster; how many there were."""
    return sum(_kill(process) for process in _processes("ray::Implicit"))


def host_processes() -> list[psutil.Process]:
    return list(_processes("ray::SlotHost"))


def _processes(name: str) -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if process.name().startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _kill(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        process.kill()
        return True
    return False


class Killer(SweepListener):
    """Kills the trial's process when its first attempt reports a step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.interrupted: list[TrialRecord] = []

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        if measurement.step == self._step and record.attempt == 1:
            kill_trial_processes()

    def trial_interrupted(self, record: TrialRecord) -> None:
        self.interrupted.append(record)


class HostKiller(Killer):
    """Kills the hosts, once, when a trial reports a step."""

    killed = 0

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        if measurement.step == self._step and not self.killed:
            self.killed = sum(_kill(process) for process in host_processes())


def history(ledger: Ledger) -> dict[int, dict[str, float]]:
    return by_step(ledger.measurements(0))
