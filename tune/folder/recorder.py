"""The listener that keeps the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Measurement, TaskScore, TrialRecord
from trainables.records.sweep_record import SweepRecord
from tune.folder.tables import write_confirmed_csv, write_results_csv
from tune.listeners import SweepListener


class Recorder(SweepListener):
    """Writes every event to the ledger, before all other listeners."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._scores: Mapping[str, TaskScore] = {}

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """Keep the base's scores for the table of confirmed trials."""
        self._scores = base.scores

    def trial_started(self, record: TrialRecord) -> None:
        """Record the trial's state."""
        self._ledger.write_trial(record)

    trial_interrupted = trial_ended = trial_started

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Append the measurement."""
        self._ledger.append(record.number, measurement)

    point_measured = measured

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Write the tables of all trials and of confirmed ones."""
        newest = [*map(self._ledger.located, self._ledger.with_newest(records))]
        write_results_csv(self._ledger.folder.results_csv, newest)
        write_confirmed_csv(self._ledger.folder.confirmed_csv, newest, self._scores)
