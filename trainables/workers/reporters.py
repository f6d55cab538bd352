"""What a trial reports to Tune.

It is `{"measurement": ...}` at each report and `{"outcome": ...}` at the end; an outcome of
RUNNING means that the trial was asked to stop: to resume later or elsewhere, unless by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import ray.tune

from trainables.config import TrialConfig
from trainables.process import watchdog
from trainables.records.schema import Measurement
from trainables.training.attempt_folder import publish_items
from trainables.workers.stop_request import stop_is_requested

MEASUREMENT = "measurement"
OUTCOME = "outcome"
# A stopped trial that does not leave its process by then loses it; the next one waits there.
MINUTES_TO_LEAVE = 10.0
Report = Callable[[Measurement], None]


def report_to_tune(measurement: Measurement) -> None:
    """Report a measurement to Tune; if Tune stops the trial here, it ends in this call."""
    ray.tune.report({MEASUREMENT: measurement.model_dump()})


class Watched:
    """A trial's reporter that ends the process, which is then restarted, if it hangs.

    That is if the trial reports nothing for too long, or does not leave once it is stopped.
    `report` passes a measurement on.
    """

    def __init__(self, trial: TrialConfig, report: Report) -> None:
        self._trial = trial
        self._report = report
        watchdog.start(trial.minutes_per_report)

    def report(self, measurement: Measurement) -> None:
        """Pass the measurement on and restart the watch for the next one."""
        publish_items(self._trial)
        watchdog.stop()  # Tune may take long to accept the report
        try:
            self._report(measurement)
        except BaseException:  # Tune has stopped the trial
            watchdog.start(MINUTES_TO_LEAVE)
            raise
        of_last_step = measurement.step == measurement.total_steps
        if not of_last_step or measurement.strength != (1.0, *self._trial.strengths)[-1]:
            watchdog.start(self._trial.minutes_per_report)

    def stop_requested(self) -> bool:
        """Whether the trial should save a checkpoint and end."""
        return stop_is_requested(self._trial.number)
