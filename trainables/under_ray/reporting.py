"""What a trial says to Tune.

It is `{"measurement": ...}` at each report and `{"outcome": ...}` at the end; an outcome that is
still RUNNING is that of a trial which was asked to stop and will go on later, or elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import ray.tune

from trainables.config import TrialConfig
from trainables.process.hang_watch import HangWatch
from trainables.results.records import Measurement
from trainables.training.attempt_folder import publish_items
from trainables.training.reporter import Reporter
from trainables.under_ray.stop_request import stop_is_requested

MEASUREMENT = "measurement"
OUTCOME = "outcome"


class _StoppableReporter:
    def stop_requested(self) -> bool:
        return stop_is_requested()


class TuneReporter(_StoppableReporter):
    """Reports from the process of a trial."""

    def report(self, measurement: Measurement) -> None:
        """Hand Tune a measurement; a trial that Tune stops here ends in this call."""
        ray.tune.report({MEASUREMENT: measurement.model_dump()})


class StoppedByTune(BaseException):
    """Tune has stopped the trial at a report; no error, and nobody's to handle on the way out."""


class WorkerReporter(_StoppableReporter):
    """Reports from a worker of a group; a barrier for the group.

    Args:
        workers: in the group.
        hand_on: gives a measurement to the trial's process and tells whether the trial goes on
            after it; None but in rank 0.
    """

    def __init__(self, workers: int, hand_on: Callable[[Measurement], bool] | None) -> None:
        self._workers = workers
        self._hand_on = hand_on

    def report(self, measurement: Measurement) -> None:
        """Wait for the group and for Tune.

        Raises:
            StoppedByTune: the trial ends here, in every worker.
        """
        from trainables.training.checkpoint import agreed

        if not agreed(self._hand_on is not None and self._hand_on(measurement), self._workers):
            raise StoppedByTune


class Watched:
    """Ends the process where a trial reports nothing for too long; it is started again then."""

    def __init__(self, trial: TrialConfig, reporter: Reporter) -> None:
        self._trial = trial
        self._reporter = reporter
        self._watch = HangWatch(trial.minutes_per_report)
        self._watch.wind()

    def report(self, measurement: Measurement) -> None:
        """Pass it on, and wait for the next from then."""
        self._watch.stop()  # Tune answers when it has taken the report, which may be long
        publish_items(self._trial)
        self._reporter.report(measurement)
        if measurement.step != measurement.total_steps:
            self._watch.wind()

    def stop_requested(self) -> bool:
        """Whether the trial shall save a checkpoint and end."""
        return self._reporter.stop_requested()
