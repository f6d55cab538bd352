"""Turns what Tune calls back into events of the sweep, and keeps the trials' records."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from trainables.config import TrialConfig
from trainables.results.records import Measurement, Outcome, TrialRecord, TrialStatus
from trainables.under_ray.reporting import MEASUREMENT, OUTCOME
from tune.listeners import SweepListener


class TuneEvents(Callback):
    """Tune's callback: tells listeners what happened, in their order.

    Args:
        listeners: who is told; the recorder stands first, so that what others show is on disk.
        retries: how often a trial may lose its process without having come any further than when
            it lost the one before. A preempted node is no trial's fault, and what is lost again
            at the same place probably is; Ray often cannot tell which it was.
        interrupted: records of trials that earlier runs of the command left unfinished.
        stopped: how a trial ended that the scheduler stopped, by Tune's trial id.

    Attributes:
        is_stopping: whether the user asked to stop.
    """

    def __init__(
        self,
        listeners: Sequence[SweepListener],
        retries: int = 0,
        interrupted: Sequence[TrialRecord] = (),
        stopped: Callable[[str], Outcome | None] = lambda trial_id: None,
    ) -> None:
        self._listeners = listeners
        self._retries = retries
        self._stopped = stopped
        self._unfinished = {record.number: record for record in interrupted}
        self._records: dict[str, TrialRecord] = {}
        self._started: set[str] = set()
        self._last_step_at_loss: dict[int, int] = {}
        self.is_stopping = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is never asked for."""
        return {}

    @property
    def running(self) -> list[TrialRecord]:
        """Records of the trials that have no final status yet."""
        running = [r for r in self._records.values() if r.status is TrialStatus.RUNNING]
        return [*running, *self._unfinished.values()]

    def sweep_stopping(self) -> None:
        """The user asked to stop; called from a thread of its own."""
        self.is_stopping = True
        for listener in self._listeners:
            listener.sweep_stopping()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial begins."""
        if trial.trial_id in self._started:
            return
        self._started.add(trial.trial_id)
        config = TrialConfig.model_validate(trial.config["trial"])
        if config.number in self._unfinished:
            unfinished = self._unfinished.pop(config.number)
            record = unfinished.in_next_attempt(config, trial.config["attempt"])
        else:
            record = TrialRecord(
                config=config,
                params=trial.config["params"],
                confirms=trial.config["confirms"],
                started=time.time(),
            )
        self._records[trial.trial_id] = record
        for listener in self._listeners:
            listener.trial_started(record)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """A trial measured something, or says how it ended."""
        record = self._records[trial.trial_id]
        if OUTCOME in result:
            self._end(trial, Outcome.model_validate(result[OUTCOME]))
        elif MEASUREMENT in result:
            measured = Measurement.model_validate(result[MEASUREMENT])
            measurement = measured.model_copy(update={"attempt": record.attempt})
            record = record.after(measurement)
            self._records[trial.trial_id] = record
            for listener in self._listeners:
                listener.measured(record, measurement)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial is over; without an outcome of its own, someone stopped it."""
        cancelled = Outcome(status=TrialStatus.CANCELLED, reason="stopped by the sweep")
        self._end(trial, self._stopped(trial.trial_id) or cancelled)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial's process died: it goes on in another one, up to the limit."""
        # Its process may have died before Tune called the trial started.
        self.on_trial_start(iteration, trials, trial)
        record = self._records.get(trial.trial_id)
        if record is None or record.status is not TrialStatus.RUNNING:
            return
        reason = _last_line(trial.get_error())
        failures = record.failures + (not self._came_further(record))
        record = record.model_copy(update={"failures": failures, "reason": reason})
        self._records[trial.trial_id] = record
        if failures > self._retries:
            self._end(trial, Outcome(status=TrialStatus.FAILED, reason=reason))
            return
        self._interrupt(trial.trial_id)

    def _came_further(self, record: TrialRecord) -> bool:
        """Whether a trial that lost its process has measured more than when it lost one before."""
        step = record.last.step if record.last else 0
        before = self._last_step_at_loss.get(record.number, -1)
        self._last_step_at_loss[record.number] = max(step, before)
        return step > before

    def _interrupt(self, trial_id: str) -> None:
        """The trial goes on in its next attempt."""
        record = self._records.pop(trial_id)
        self._unfinished[record.number] = record
        for listener in self._listeners:
            listener.trial_interrupted(record)

    def _end(self, trial: Trial, outcome: Outcome) -> None:
        record = self._records.get(trial.trial_id)
        if record is None or record.status is not TrialStatus.RUNNING:
            return
        if outcome.status is not TrialStatus.RUNNING:
            self._finish(trial.trial_id, record, outcome)
        elif self.is_stopping:  # it goes on when the command is given again
            self._unfinished[record.number] = self._records.pop(trial.trial_id)
        elif outcome.reason:  # the next trials would meet the same full disk: this ends the sweep
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), outcome.reason)
        else:  # its node is about to go
            self._interrupt(trial.trial_id)

    def _finish(self, trial_id: str, record: TrialRecord, outcome: Outcome) -> None:
        record = record.ended_as(outcome)
        self._records[trial_id] = record
        for listener in self._listeners:
            listener.trial_ended(record)


def _last_line(error: Exception | None) -> str:
    lines = str(error or "").strip().splitlines()
    return lines[-1].strip()[:500] if lines else "its process died"
