"""The running sweep on the terminal: a live table, or plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from analysis.results.formatting import (
    STATUS,
    alteration,
    count_statuses,
    count_trials,
    duration,
    how_many,
    one_line,
    scores_in_words,
    setting,
)
from analysis.results.sweep_table import SweepTable
from trainables.records.schema import FAULTS, BaseRecord, Measurement, TrialRecord
from trainables.records.sweep_record import SweepRecord
from tune.config.sweep_config import SweepConfig
from tune.listeners import SweepListener

_REFRESHES_PER_SECOND = 2


class ConsoleListener(SweepListener):
    """Shows a sweep on a console, live if it is a terminal.

    Args:
        config: determines how many trials there will be and which are best.
        console: where to write; `redirect_logs` yields one that nothing else writes to.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self, config: SweepConfig, console: Console, clock: Callable[[], float] = time.time
    ) -> None:
        from tune.search.space import planned_trials  # loads Optuna

        self._config = config
        self._console = console
        self._clock = clock
        searched, hours = planned_trials(config), config.budget.hours
        self._table = SweepTable(config.name, searched, config, clock(), hours)
        # Live draws from its own thread. Never print while holding this lock: printing waits for
        # Live's lock, and Live waits for this one.
        self._lock = Lock()
        self._live: Live | None = None

    def preparing(self, message: str) -> None:
        """Print the message, above the table if there is one."""
        self._say(message)

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """Show a training sample, the base's scores and warnings; start the live table."""
        with self._lock:
            self._table.began = sweep.provenance.created  # as for who watches, and for the budget
            self._table.base = base
            for record in sorted(history, key=lambda r: r.ended or 0.0):
                self._table.take(record)
        self._say(f"a training sample, context: {base.sample.context!r}")
        self._say(f"a training sample, learned: {base.sample.learned!r}")
        for warning in sweep.provenance.warnings_with(base):
            self._say(f"warning: {one_line(warning)}", "yellow")
        if self._console.is_interactive:
            self._live = Live(
                console=self._console,
                get_renderable=self._picture,
                refresh_per_second=_REFRESHES_PER_SECOND,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)
            return
        self._say(f"base: {scores_in_words(base.metrics, self._config)}")
        if history:
            self._say(f"{count_trials(history)} of earlier runs: {count_statuses(history)}")

    def trial_started(self, record: TrialRecord) -> None:
        """Add the trial to the running trials."""
        with self._lock:
            self._table.take(record)
        if self._live is None:
            again = f" again, attempt {record.attempt}" if record.attempt > 1 else ""
            confirms = f", confirms trial {record.confirms}" if record.confirms is not None else ""
            self._say(f"trial {record.number} started{again}: {setting(record)}{confirms}")

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Update the trial's progress."""
        with self._lock:
            self._table.update(record, measurement)
        if measurement.is_evaluation and self._live is None:
            scores = scores_in_words(measurement.metrics, self._config)
            self._say(f"trial {record.number} step {measurement.step}: {scores}")

    def point_measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Say what the trial is at another strength; the table shows what training left."""
        if self._live is None:
            scores = scores_in_words(measurement.metrics, self._config)
            self._say(f"trial {record.number}{alteration(measurement)}: {scores}")

    def trial_interrupted(self, record: TrialRecord) -> None:
        """Say why the trial has stopped for now."""
        with self._lock:
            self._table.interrupt(record)
        why = one_line(record.reason or "its node is going away").rstrip(".")
        self._say(
            f"trial {record.number} interrupted: {why}; goes on in its next attempt", "yellow"
        )

    def trial_ended(self, record: TrialRecord) -> None:
        """Show how the trial ended."""
        with self._lock:
            self._table.take(record)
            progress = self._progress()
        if self._live is None or record.status in FAULTS:
            took = f" after {duration(record.seconds)}" if record.seconds is not None else ""
            why = f": {one_line(record.reason)}" if record.reason else ""
            self._say(
                f"trial {record.number} {record.status.in_words}{took}{why} ({progress})",
                STATUS[record.status].style,
            )

    def sweep_stopping(self) -> None:
        """Say what Ctrl-C does."""
        with self._lock:
            running = len(self._table.running())
        saved = f", once a checkpoint is saved of {how_many(running, 'running trial')}"
        self._say(f"stopping{saved if running else ''}", "yellow")
        self._say("Ctrl-C again ends at once; either way the same command goes on", "yellow")

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Draw the table for the last time."""
        with self._lock:
            for record in records:
                if self._table.get(record.number) != record:
                    self._table.take(record)
            self._table.has_ended = True
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True)

    def _progress(self) -> str:
        return self._table.progress(self._clock())

    def _picture(self) -> RenderableType:
        with self._lock:
            return self._table.render(self._console, self._clock())
