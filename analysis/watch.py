"""Watches a running sweep from another terminal; only reads its folder, never writes to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from analysis.results.formatting import (
    INTERRUPTED,
    STATUS,
    duration,
    metric_text,
    one_line,
    scores_in_words,
    setting,
    why,
    without_controls,
)
from analysis.results.pareto import is_feasible
from analysis.results.recommendation import numbers_text, recommend
from analysis.results.sweep_table import SweepTable, single
from analysis.sweep_settings import SweepSettings
from analysis.sweeps import no_sweep
from trainables.errors import Fault, UserError, first_line
from trainables.records.ledger import Ledger
from trainables.records.record_paths import trial_numbers
from trainables.records.schema import FAULTS, Measurement, TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord

_SECONDS_BETWEEN_READS = 1.0
_SECONDS_HELD = 60.0
_MOST_FAILURES = 5
_UNCUT = 10_000  # columns


def watch(sweep_dir: Path, once: bool, console: Console | None = None) -> None:
    """Show a sweep until it ends: a live table on a terminal, else one line per change.

    Args:
        sweep_dir: the sweep's folder; its driver may be running, have ended or been killed.
        once: draw the table only once.
        console: to write to; default standard output, where no line is cut unless it is a terminal.

    Raises:
        UserError: the folder holds no sweep, disappears, or cannot be read.
    """
    if console is None:
        console = Console()
        console = console if console.is_interactive else Console(width=_UNCUT)
    watched = WatchedSweep(sweep_dir)
    changed = watched.refresh()
    if not once and console.is_interactive:
        with Live(console=console, auto_refresh=False) as live:
            live.update(watched.render(console), refresh=True)
            while not watched.has_ended:
                time.sleep(_SECONDS_BETWEEN_READS)
                watched.refresh()
                live.update(watched.render(console), refresh=True)
        return
    while not once:
        for record in changed:
            line = without_controls(watched.line(record))
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        if watched.has_ended:
            break
        time.sleep(_SECONDS_BETWEEN_READS)
        changed = watched.refresh()
    console.print(watched.render(console))


class WatchedSweep:
    """A sweep as seen in its folder; files are read again only if they have changed.

    Args:
        sweep_dir: the sweep's folder.
        clock: seconds since the epoch.

    Attributes:
        has_ended: whether its driver had exited before the folder was read last, so that all it
            wrote has been read.
    """

    def __init__(self, sweep_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._ledger = Ledger(sweep_dir)
        self._clock = clock
        self._seen: dict[Path, tuple[int, int]] = {}
        self._records: dict[int, TrialRecord] = {}
        self._unreadable: dict[Path, str] = {}
        self._settings: SweepSettings | None = None
        self._began = 0.0
        self._table: SweepTable | None = None
        self.has_ended = False

    @property
    def _is_held(self) -> bool:
        """Whether a driver holds the sweep that has given a sign of life, as it does each 10 s."""
        return any(self._clock() - _modified_at(file) < _SECONDS_HELD for file in self._locks)

    @property
    def _locks(self) -> list[Path]:
        """What a driver holds the sweep by; one that was killed leaves them behind."""
        return [*self._ledger.folder.root.glob("lock*.json")]

    def refresh(self) -> list[TrialRecord]:
        """Read what has changed; returns the changed trials in the order in which they ended."""
        try:
            return self._refresh()
        except OSError as error:
            rule = f"cannot be read: {self._ledger.folder.root} ({first_line(error)})"
            raise UserError([Fault("SWEEP_DIR", rule)]) from error

    def _refresh(self) -> list[TrialRecord]:
        folder = self._ledger.folder
        if not self._ledger.exists():
            # The base is evaluated before the sweep's record is written.
            if self._settings is None and folder.log.exists():
                if self._is_held:
                    return []
                rule = f"no sweep has begun in it, and no command runs there: {folder.root}"
                remedy = f"start it again; {folder.log} tells why"
                raise UserError([Fault("SWEEP_DIR", rule, remedy)])
            rule = "holds no sweep" if self._settings is None else "holds no sweep any more"
            raise UserError([no_sweep(folder.root, rule)])
        is_over = self._is_over()
        if self._has_changed(folder.sweep_json):
            self._begin(self._ledger.sweep())
        table = self._table
        if table is None:
            return []
        if self._has_changed(folder.base_json):
            table.base = self._ledger.base()
        found = trial_numbers(file.parent.name for file in folder.trials.glob("*/trial.json"))
        read = [each for number in found if (each := self._read(number))]
        read.sort(key=lambda each: (each[0].ended is None, each[0].ended, each[0].number))
        for record, measurements in read:
            self._records[record.number] = record
            table.take(record)
            evaluations = [each for each in measurements if each.is_evaluation]
            for measurement in (*evaluations[-1:], *measurements[-1:]):
                table.update(record, measurement)
        self.has_ended = table.has_ended = is_over or self._is_complete()
        return [record for record, _ in read]

    def _is_over(self) -> bool:
        """Whether the driver wrote last what it writes last."""
        begun, ended = self._ledger.folder.sweep_json, self._ledger.folder.results_csv
        # Of a copy, both times are those of copying; what no driver holds has been released.
        return ended.exists() and (
            ended.stat().st_mtime_ns > begun.stat().st_mtime_ns or not self._locks
        )

    def _is_complete(self) -> bool:
        """Whether all trials have ended and no driver is about to try again those that failed."""
        # With repeats of the winners, the end of the search is not the end of the sweep.
        if self._settings is None or self._settings.confirm is not None or self._is_held:
            return False
        records = self._records.values()
        searched = sum(record.confirms is None for record in records)
        running = any(record.status is TrialStatus.RUNNING for record in records)
        return searched >= self._settings.planned_trials and not running

    def line(self, record: TrialRecord) -> str:
        """A trial that has changed, as plain text."""
        is_running = record.status is TrialStatus.RUNNING
        status = INTERRUPTED if is_running and self.has_ended else record.status.in_words
        text = f"trial {record.number} {status}"
        if is_running:
            text += f", {setting(record)}"
        if record.last and self._settings:
            scores = scores_in_words(record.last.metrics, self._settings)
            text += f", step {record.last.step}: {scores}"
        return f"{text}: {one_line(record.reason)}" if record.reason else text

    def render(self, console: Console) -> RenderableType:
        """The table, followed by the best trial, the throughput and the failures."""
        if self._table is None:
            return single(f"{self._ledger.folder.root.name}: the base is being evaluated", "bold")
        below = [*self._best(), *self._pace(), *self._failures()]
        return Group(self._table.render(console, self._now(), footer=len(below)), *below)

    def _begin(self, sweep: SweepRecord) -> None:
        """Start over, as a restart of the command may have changed the number of trials."""
        self._settings = settings = SweepSettings.of(sweep)
        self._began = sweep.provenance.created
        self._table = SweepTable(
            settings.name, settings.planned_trials, settings, self._began, settings.budget.hours
        )
        kept = self._seen[self._ledger.folder.sweep_json]
        self._seen = {self._ledger.folder.sweep_json: kept}

    def _read(self, number: int) -> tuple[TrialRecord, list[Measurement]] | None:
        """A trial, if its record or its measurements have changed; else None."""
        file, metrics = self._ledger.folder.trial_json(number), self._ledger.folder.metrics(number)
        # No short-circuit: both must be marked as seen.
        if not (self._has_changed(file) | self._has_changed(metrics)):
            return None
        try:
            record = TrialRecord.model_validate_json(file.read_bytes())
            measurements = self._ledger.measurements(number)
        except FileNotFoundError:
            return None
        except (ValidationError, UserError):
            self._unreadable[file] = f"trial {number}: its record cannot be read: {file.parent}"
            return None
        self._unreadable.pop(file, None)
        if measurements:
            record = record.model_copy(update={"last": measurements[-1]})
        return record, measurements

    def _has_changed(self, file: Path) -> bool:
        """Whether a file has changed since the last call; a missing file has not."""
        try:
            state = file.stat()
        except FileNotFoundError:
            return False
        stamp = state.st_mtime_ns, state.st_size
        if self._seen.get(file) == stamp:
            return False
        self._seen[file] = stamp
        return True

    def _now(self) -> float:
        """The current time, frozen once the sweep has ended."""
        ends = [record.ended for record in self._records.values() if record.ended is not None]
        return max(ends) if self.has_ended and ends else self._clock()

    def _best(self) -> list[Text]:
        """The trial to take once the sweep has ended; the best in the first objective before."""
        settings, table = self._settings, self._table
        if table is None or settings is None or not (best := table.best_first(1)):
            return []
        found = recommend(settings, [*self._records.values()]) if self.has_ended else None
        if found:
            text = f"{found.word}: {numbers_text([found.trial])} ({setting(found.trial)})"
            return [single(f"{text}, {found.reason}", "green" if found.feasible else "yellow")]
        objective, record = settings.objectives[0], best[0]
        is_bound = settings.constraints and is_feasible(settings, record)
        return [
            single(
                f"{'lowest' if objective.mode == 'min' else 'highest'} {objective.metric} so far"
                f"{' within all constraints' if is_bound else ''}: "
                f"{metric_text(objective.metric, record.metric(objective.metric))}, "
                f"{numbers_text([record])} ({setting(record)})",
                "green",
            )
        ]

    def _pace(self) -> list[Text]:
        """Trials per hour since the command started, and how long ago anything was recorded."""
        records, parts = self._records.values(), []
        finished = sum((record.ended or 0.0) > self._began for record in records)
        if finished:
            an_hour = 3600 * finished / (self._now() - self._began)
            parts.append(f"{an_hour:.0f} trials/h" if an_hour >= 10 else f"{an_hour:.2g} trials/h")
        if not self.has_ended:
            newest = max(stamp for stamp, _ in self._seen.values()) / 1e9
            parts.append(f"newest record {duration(self._clock() - newest)} old")
        elif any(record.status is TrialStatus.RUNNING for record in records):
            parts.append("the sweep was interrupted; the same command goes on")
        else:
            parts.append("the sweep has ended")
        return [single(", ".join(parts), "dim")]

    def _failures(self) -> list[Text]:
        failed = [record for record in self._records.values() if record.status in FAULTS]
        failed.sort(key=lambda record: record.ended or 0, reverse=True)
        lines = [
            single(
                f"trial {record.number} {record.status.in_words}: {why(record)}",
                STATUS[record.status].style,
            )
            for record in failed[:_MOST_FAILURES]
        ]
        if len(failed) > _MOST_FAILURES:
            lines.append(single(f"and {len(failed) - _MOST_FAILURES} more failures", "dim"))
        return lines + [single(line, "red") for line in self._unreadable.values()]


def _modified_at(file: Path) -> float:
    """When a file was last written, seconds since the epoch; long ago if it is gone."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
