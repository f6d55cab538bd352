"""What a trial reports to Tune.

It is `{"measurement": ...}` at each report and `{"outcome": ...}` at the end; an outcome of
RUNNING means that the trial was asked to stop: to resume later or elsewhere, unless by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import ray.tune

from trainables.config import TrialConfig
from trainables.process import hang_watch
from trainables.results.records import Measurement
from trainables.training.attempt_folder import publish_items
from trainables.training.reporter import Reporter
from trainables.under_ray.stop_request import stop_is_requested

MEASUREMENT = "measurement"
OUTCOME = "outcome"
# Until a process that a stopped trial does not leave ends; the next trial waits in it meanwhile.
MINUTES_TO_LEAVE = 10.0


class _StoppableReporter:
    def __init__(self, trial: TrialConfig) -> None:
        self._number = trial.number

    def stop_requested(self) -> bool:
        return stop_is_requested(self._number)


class TuneReporter(_StoppableReporter):
    """Reports from a trial's process."""

    def report(self, measurement: Measurement) -> None:
        """Report a measurement to Tune; if Tune stops the trial here, it ends in this call."""
        ray.tune.report({MEASUREMENT: measurement.model_dump()})


class StoppedByTune(BaseException):
    """Tune has stopped the trial at a report; not an error, so no handler must catch it."""


class WorkerReporter(_StoppableReporter):
    """Reports from a worker of a group; each report is a barrier for the group.

    Args:
        trial: what the group trains.
        hand_on: passes a measurement to the trial's process and returns whether the trial goes on
            after it; None except in rank 0.
    """

    def __init__(self, trial: TrialConfig, hand_on: Callable[[Measurement], bool] | None) -> None:
        super().__init__(trial)
        self._workers = trial.workers
        self._hand_on = hand_on

    def report(self, measurement: Measurement) -> None:
        """Wait for the group and for Tune.

        Raises:
            StoppedByTune: the trial ends here, in every worker.
        """
        from trainables.process.workers import agreed

        if not agreed(self._hand_on is not None and self._hand_on(measurement), self._workers):
            raise StoppedByTune


class Watched:
    """Ends the process, which is then restarted, if a trial reports nothing for too long.

    Or if it does not leave the process once it is stopped.
    """

    def __init__(self, trial: TrialConfig, reporter: Reporter) -> None:
        self._trial = trial
        self._reporter = reporter
        hang_watch.wind(trial.minutes_per_report)

    def report(self, measurement: Measurement) -> None:
        """Pass the measurement on and restart the watch for the next one."""
        publish_items(self._trial)
        hang_watch.stop()  # Tune may take long to accept the report
        try:
            self._reporter.report(measurement)
        except BaseException:  # Tune has stopped the trial
            hang_watch.wind(MINUTES_TO_LEAVE)
            raise
        if measurement.step != measurement.total_steps:
            hang_watch.wind(self._trial.minutes_per_report)

    def stop_requested(self) -> bool:
        """Whether the trial should save a checkpoint and end."""
        return self._reporter.stop_requested()
