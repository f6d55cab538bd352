"""Turns Tune's callbacks into events of the sweep."""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from trainables.config import TrialConfig
from trainables.errors import as_reason
from trainables.records.schema import Measurement, Outcome, TrialRecord, TrialStatus
from trainables.workers.reporters import MEASUREMENT, OUTCOME
from tune.listeners import SweepListener
from tune.stops_by_hand import ENDED_BY_HAND, StopsByHand

_OF_TRIAL = "ray::"  # in the traceback of an error of the trial itself
_MODULES = re.compile(r"^(\w+\.)+(?=\w+: )")  # before the name of an error
_LOSS = "its process or node was lost"
_LONGEST_REASON = 300  # characters


class TuneEvents(Callback):
    """Tune callback that notifies the listeners of each event.

    Args:
        listeners: in the order of notification, the recorder first.
        retries: how often a trial may lose its process without progress since the previous loss;
            a preempted node is not its fault, a second loss at the same step probably is.
        finished: records of trials that have ended.
        interrupted: records of trials to resume.
        stopped: returns the outcome of a trial that the scheduler stopped, by Tune's trial id.
        by_hand: the trials that the user ends one by one.

    Attributes:
        is_stopping: whether the user asked to stop.
    """

    def __init__(
        self,
        listeners: Sequence[SweepListener],
        retries: int,
        finished: Sequence[TrialRecord],
        interrupted: Sequence[TrialRecord],
        stopped: Callable[[str], Outcome | None],
        by_hand: StopsByHand,
    ) -> None:
        self._listeners = listeners
        self._retries = retries
        self._stopped = stopped
        self._by_hand = by_hand
        self._unfinished = {record.number: record for record in interrupted}
        self._records: dict[str, TrialRecord] = {}
        self._started: set[str] = set()  # ids of trials, in this run of the command
        self._last_step_at_loss: dict[int, int] = {}
        last = (record.last for record in (*finished, *interrupted))
        newest = max((measured.time for measured in last if measured), default=0.0)
        self._now = _Clock(newest)
        self._error: Exception | None = None
        self.is_stopping = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that never happens."""
        return {}

    @property
    def running(self) -> list[TrialRecord]:
        """Records of the trials without a final status."""
        running = [r for r in self._records.values() if r.status is TrialStatus.RUNNING]
        return [*running, *self._unfinished.values()]

    def sweep_stopping(self) -> None:
        """Handle the user's request to stop; called from its own thread."""
        self.is_stopping = True
        for listener in self._listeners:
            listener.sweep_stopping()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Handle the start of a trial."""
        if trial.trial_id in self._started:
            return
        self._started.add(trial.trial_id)
        config = TrialConfig.model_validate(trial.config["trial"])
        if config.number in self._unfinished:
            unfinished = self._unfinished.pop(config.number)
            attempt = trial.config["attempt"]
            record = unfinished.in_next_attempt(config, attempt, self._now())
        else:
            record = TrialRecord(
                config=config,
                params=trial.config["params"],
                confirms=trial.config["confirms"],
                started=self._now(),
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
        """Handle a trial's measurement or outcome."""
        record = self._records[trial.trial_id]
        if OUTCOME in result:
            self._end(trial, Outcome.model_validate(result[OUTCOME]))
        elif MEASUREMENT in result:
            measured = Measurement.model_validate(result[MEASUREMENT])
            # Early stopping replays the order of arrival, and the workers' clocks differ.
            arrived = {"attempt": record.attempt, "time": self._now()}
            measurement = measured.model_copy(update=arrived)
            record = record.after(measurement)
            self._records[trial.trial_id] = record
            for listener in self._listeners:
                if measurement.is_altered:
                    listener.point_measured(record, measurement)
                else:
                    listener.measured(record, measurement)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Handle the end of a trial; one that reported no outcome itself was stopped."""
        cancelled = Outcome(status=TrialStatus.CANCELLED, reason="stopped by the sweep")
        try:
            self._end(trial, self._stopped(trial.trial_id) or cancelled)
        except Exception as error:  # Tune would take it for the trial's, and wait for ever
            self._error = error

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look for trials to end by hand; raise an earlier error, which ends the sweep here."""
        if self._error is not None:
            raise self._error
        self._by_hand.look(lambda: {record.number for record in self.running})

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Handle the loss of a trial's process: retry up to the limit."""
        # The process may have died before Tune reported the trial as started.
        self.on_trial_start(iteration, trials, trial)
        record = self._records.get(trial.trial_id)
        if record is None or record.status is not TrialStatus.RUNNING:
            return
        reason = _why_ended(trial.error_file)
        failures = record.failures + (not self._came_further(record))
        record = record.model_copy(update={"failures": failures, "reason": reason})
        self._records[trial.trial_id] = record
        if record.number in self._by_hand.asked:
            self._end(trial, ENDED_BY_HAND)
        elif failures > self._retries:
            self._end(trial, Outcome(status=TrialStatus.FAILED, reason=reason))
        else:
            self._interrupt(trial.trial_id)

    def _came_further(self, record: TrialRecord) -> bool:
        """Whether the trial has advanced since it lost its process before."""
        step = record.last.step if record.last else 0
        before = self._last_step_at_loss.get(record.number, -1)
        self._last_step_at_loss[record.number] = max(step, before)
        return step > before

    def _interrupt(self, trial_id: str) -> None:
        record = self._records.pop(trial_id)
        self._unfinished[record.number] = record
        for listener in self._listeners:
            listener.trial_interrupted(record)

    def _end(self, trial: Trial, outcome: Outcome) -> None:
        record = self._records.get(trial.trial_id)
        if record is None or record.status is not TrialStatus.RUNNING:
            return
        if outcome.status is TrialStatus.RUNNING and record.number in self._by_hand.asked:
            outcome = ENDED_BY_HAND
        if outcome.status is not TrialStatus.RUNNING:
            self._finish(trial.trial_id, record, outcome)
        elif self.is_stopping:  # it resumes when the command is run again
            self._unfinished[record.number] = self._records.pop(trial.trial_id)
        elif outcome.reason:  # a full disk ends the sweep
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), outcome.reason)
        else:  # its node is being removed
            self._interrupt(trial.trial_id)

    def _finish(self, trial_id: str, record: TrialRecord, outcome: Outcome) -> None:
        record = record.ended_as(outcome, self._now())
        self._records[trial_id] = record
        for listener in self._listeners:
            listener.trial_ended(record)


class _Clock:
    """Seconds since the epoch, each later than all before, even if the clock was set back.

    Args:
        newest: the latest time in the records, maybe by another machine's clock.
    """

    def __init__(self, newest: float) -> None:
        self._last = newest
        self._ahead = max(0.0, newest - time.time())

    def __call__(self) -> float:
        self._last = max(math.nextafter(self._last, math.inf), time.time() + self._ahead)
        return self._last


def _why_ended(error_file: str | None) -> str:
    """Why a trial's process ended, from Tune's error file, which its storage gets only later."""
    text = ""
    with suppress(OSError):
        text = Path(error_file).read_text(errors="replace") if error_file else ""
    newest = text.rpartition("Failure # ")[2].strip()
    words = as_reason(newest.rpartition("\n")[-1].strip())
    if _OF_TRIAL in newest:
        return _MODULES.sub("", words)
    return ": ".join(filter(None, [_LOSS, shorten(words, _LONGEST_REASON)]))
