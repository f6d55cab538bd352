"""The events of a sweep and the interface of their listeners.

The recorder, the search, the disk budget, W&B and the console are listeners.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainables.records.schema import BaseRecord, Measurement, TrialRecord
from trainables.records.sweep_record import SweepRecord


class SweepListener:
    """Does nothing at every event."""

    def preparing(self, message: str) -> None:
        """A message: what the sweep does or waits for, or a warning."""

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """The base is evaluated; `history` holds the finished trials of earlier runs."""

    def trial_started(self, record: TrialRecord) -> None:
        """A trial starts to run, or to run again in its next attempt."""

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """A trial reported; `record` already includes the measurement."""

    def point_measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """A trial's weights were measured at another strength, or repaired."""

    def trial_interrupted(self, record: TrialRecord) -> None:
        """A trial lost its process or its node; it will run again in its next attempt."""

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial has its final status."""

    def sweep_stopping(self) -> None:
        """The user asked to stop: trials save a checkpoint, end, and resume at the next start.

        Called from its own thread.
        """

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Nothing more will run; `records` holds all trials of the sweep, by number."""
