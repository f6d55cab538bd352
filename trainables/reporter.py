"""To whom a trial speaks. The trial pushes; it never knows who listens."""

from __future__ import annotations

from typing import Protocol

from trainables.records import Measurement


class Reporter(Protocol):
    """Receives a trial's measurements, in order of their steps."""

    def report(self, measurement: Measurement) -> None:
        """Take one measurement. May end the trial by raising `StopTrial`."""


class StopTrial(Exception):
    """Raised by a reporter to end the trial now, without fault."""


class ListReporter:
    """Keeps the measurements in a list; for tests and notebooks."""

    def __init__(self) -> None:
        self.measurements: list[Measurement] = []

    def report(self, measurement: Measurement) -> None:
        """Append the measurement."""
        self.measurements.append(measurement)
