"""Where a trial reports its measurements."""

from __future__ import annotations

from typing import Protocol

from trainables.records.schema import Measurement


class Reporter(Protocol):
    """Receives a trial's measurements, in order of their steps."""

    def report(self, measurement: Measurement) -> None:
        """Take one measurement."""

    def stop_requested(self) -> bool:
        """Whether the trial should save a checkpoint and end with `StopTrial`, to resume later."""


class StopTrial(Exception):
    """The trial has ended on request; a checkpoint holds its state."""


class ListReporter:
    """Keeps the measurements in a list; for the probe, tests and notebooks."""

    def __init__(self) -> None:
        self.measurements: list[Measurement] = []

    def report(self, measurement: Measurement) -> None:
        """Append the measurement."""
        self.measurements.append(measurement)

    def stop_requested(self) -> bool:
        """Never."""
        return False
