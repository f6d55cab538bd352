"""Turns what Tune calls back into events of the sweep, and keeps the trials' records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from trainables.config import TrialConfig
from trainables.metric_keys import METRICS
from trainables.records import Measurement, Outcome, TrialRecord, TrialStatus
from trainables.under_ray import MEASUREMENT, OUTCOME
from tune.listeners import SweepListener


class TuneEvents(Callback):
    """Tune's callback: tells listeners what happened, in their order.

    Args:
        listeners: who is told; the recorder stands first, so that what others show is on disk.
    """

    def __init__(self, listeners: Sequence[SweepListener]) -> None:
        self._listeners = listeners
        self._records: dict[str, TrialRecord] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is never asked for."""
        return {}

    @property
    def running(self) -> list[TrialRecord]:
        """Records of the trials that have no final status yet."""
        return [r for r in self._records.values() if r.status is TrialStatus.RUNNING]

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial begins."""
        if trial.trial_id in self._records:
            return
        record = TrialRecord(
            config=TrialConfig.model_validate(trial.config["trial"]),
            params=trial.config["params"],
            attempt=trial.config["attempt"],
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
            measurement = Measurement.model_validate(result[MEASUREMENT])
            record = record.model_copy(
                update={"last": measurement, "best": _best(record.best, measurement)}
            )
            self._records[trial.trial_id] = record
            for listener in self._listeners:
                listener.measured(record, measurement)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial is over; without an outcome of its own, someone stopped it."""
        self._end(trial, Outcome(status=TrialStatus.CANCELLED, reason="stopped by the sweep"))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial's process died or raised outside the trial's own code."""
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        self._end(trial, Outcome(status=TrialStatus.FAILED, reason=lines[-1][:500]))

    def _end(self, trial: Trial, outcome: Outcome) -> None:
        record = self._records.get(trial.trial_id)
        if record is not None and record.status is TrialStatus.RUNNING:
            self._finish(trial.trial_id, record, outcome)

    def _finish(self, trial_id: str, record: TrialRecord, outcome: Outcome) -> None:
        record = record.model_copy(
            update={
                "status": outcome.status,
                "reason": outcome.reason,
                "weights_dir": outcome.weights_dir,
                "ended": time.time(),
            }
        )
        self._records[trial_id] = record
        for listener in self._listeners:
            listener.trial_ended(record)


def _best(best: dict[str, float], measurement: Measurement) -> dict[str, float]:
    """Best value so far of each metric that has a better direction."""
    updated = dict(best)
    for key, metric in METRICS.items():
        if metric.better == "none" or key not in measurement.metrics:
            continue
        value = measurement.metrics[key]
        choose = min if metric.better == "min" else max
        updated[key] = choose(updated.get(key, value), value)
    return updated
