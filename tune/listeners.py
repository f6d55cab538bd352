"""What happens in a sweep, told to whoever wants to know.

The recorder, the searcher, W&B and the console all listen here; none of them reads Ray's results.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainables.results.records import BaseRecord, Measurement, SweepRecord, TrialRecord


class SweepListener:
    """Does nothing at every event; listeners override what they care about."""

    def preparing(self, message: str) -> None:
        """What the sweep does, or waits for, before its first trial."""

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """The base is evaluated; `history` are the finished trials of earlier runs."""

    def trial_started(self, record: TrialRecord) -> None:
        """A trial begins to run, or to run again under its next attempt."""

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """A trial reported; `record` includes the measurement already."""

    def trial_interrupted(self, record: TrialRecord) -> None:
        """A trial lost its process or its node; it will run again under its next attempt."""

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial has its final status."""

    def sweep_stopping(self) -> None:
        """The user asked to stop: trials save a checkpoint and end, and go on at the next start.

        Called from a thread of its own.
        """

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Nothing more will run; all trials of the sweep, by number."""
