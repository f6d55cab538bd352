"""The sweep as it runs, on the terminal: a live table, or plain lines where nothing can redraw."""

from __future__ import annotations

import time
from statistics import median
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trainables import metric_keys
from trainables.records import BaseRecord, Measurement, SweepRecord, TrialRecord, TrialStatus
from trainables.wording import ABSENT, metric_text, rate, setting, status_in_full
from tune.listeners import SweepListener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console, JustifyMethod, RenderableType

    from tune.sweep_config import SweepConfig

_REFRESHES_PER_SECOND = 2
_OTHER_LINES = 4  # header, column titles, base, and one that keeps the cursor on the screen
_WORTH_A_LINE = {TrialStatus.DIVERGED, TrialStatus.OUT_OF_MEMORY, TrialStatus.FAILED}


class Word(NamedTuple):
    """A status as it is shown: the word says it, the colour helps to find it."""

    short: str
    style: str


STATUS = {
    TrialStatus.RUNNING: Word("running", "cyan"),
    TrialStatus.COMPLETE: Word("complete", "green"),
    TrialStatus.STOPPED_EARLY: Word("stopped", "yellow"),
    TrialStatus.DIVERGED: Word("diverged", "magenta"),
    TrialStatus.OUT_OF_MEMORY: Word("OOM", "bold red"),
    TrialStatus.FAILED: Word("failed", "red"),
    TrialStatus.CANCELLED: Word("cancelled", "dim"),
}


_WIDTHS = {
    "trial": 5,
    "method": 6,
    "rank": 4,
    "alpha": 5,
    "lr": 7,
    "step": 5,
    "loss": 5,
    "in-domain": 9,
    "forgetting": 10,
    "OOD": 5,
    "status": 9,
}
_LEFT_OUT_FIRST = ("method", "alpha", "step", "rank", "loss", "lr")


class ConsoleListener(SweepListener):
    """Shows a sweep on a console, live where it is a terminal.

    Attributes:
        config: tells how many trials there will be and which are the best.
        console: where to; `chatter_to` yields one that nobody else writes to.
        clock: seconds since the epoch.
    """

    def __init__(
        self, config: SweepConfig, console: Console, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._console = console
        self._clock = clock
        self._began = clock()
        self._planned = _planned_trials(config)
        # Live draws from a thread of its own. Nothing is printed while the lock is held: printing
        # waits for Live's lock, and Live waits for this one.
        self._lock = Lock()
        self._base: BaseRecord | None = None
        self._records: dict[int, TrialRecord] = {}
        self._evaluated: dict[int, Measurement] = {}
        self._newest_first: list[int] = []
        self._most_at_once = 1
        self._live: Live | None = None

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """Show the base's scores and warnings; begin the live table."""
        with self._lock:
            self._base = base
            for record in sorted(history, key=lambda r: r.ended or 0.0):
                self._take(record)
        for warning in dict.fromkeys(base.warnings):
            self._say(f"warning: {one_line(warning)}", "yellow")
        if self._console.is_interactive:
            self._live = Live(
                console=self._console,
                get_renderable=self._table,
                refresh_per_second=_REFRESHES_PER_SECOND,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)
            return
        self._say(f"base: {_scores(base.metrics)}")
        if history:
            self._say(f"{len(history)} trials of earlier runs: {count_statuses(history)}")

    def trial_started(self, record: TrialRecord) -> None:
        """Add the trial to the running ones."""
        with self._lock:
            self._take(record)
            self._most_at_once = max(self._most_at_once, len(self._running()))
        if self._live is None:
            again = f" again, attempt {record.attempt}" if record.attempt > 1 else ""
            confirms = f", confirms trial {record.confirms}" if record.confirms is not None else ""
            self._say(f"trial {record.number} started{again}: {setting(record.config)}{confirms}")

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Keep the newest evaluation; points of the training curve move step and loss alone."""
        evaluation = metric_keys.IN_DOMAIN_ACC in measurement.metrics
        with self._lock:
            self._records[record.number] = record
            if evaluation:
                self._evaluated[record.number] = measurement
        if evaluation and self._live is None:
            scores = _scores(measurement.metrics)
            self._say(f"trial {record.number} step {measurement.step}: {scores}")

    def trial_ended(self, record: TrialRecord) -> None:
        """Show how the trial ended."""
        with self._lock:
            self._take(record)
            progress = self._progress()
        if self._live is None or record.status in _WORTH_A_LINE:
            took = f" after {duration(record.ended - record.started)}" if record.ended else ""
            why = f": {one_line(record.reason)}" if record.reason else ""
            self._say(
                f"trial {record.number} {status_in_full(record.status)}{took}{why} ({progress})",
                STATUS[record.status].style,
            )

    def sweep_stopping(self) -> None:
        """Say what Ctrl-C does."""
        running = len(self._running())
        self._say(f"stopping: {running} running trials save a checkpoint and end", "yellow")
        self._say("Ctrl-C again ends at once; either way the same command goes on", "yellow")

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Draw the table for the last time."""
        with self._lock:
            for record in records:
                if self._records.get(record.number) != record:
                    self._take(record)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _take(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        if record.number in self._newest_first:
            self._newest_first.remove(record.number)
        if record.status is not TrialStatus.RUNNING:
            self._newest_first.insert(0, record.number)

    def _running(self) -> list[TrialRecord]:
        running = (r for r in self._records.values() if r.status is TrialStatus.RUNNING)
        return sorted(running, key=lambda r: r.number)

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True, highlight=False)

    def _table(self) -> RenderableType:
        with self._lock:
            numbers, hidden = self._rows(max(1, self._console.height - _OTHER_LINES))
            columns = _fitting(self._console.width)
            table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
            for column in columns:
                side: JustifyMethod = "left" if column in ("method", "status") else "right"
                table.add_column(column, no_wrap=True, justify=side)
            if self._base is not None:
                _add_row(table, columns, _base_cells(self._base))
            for number in numbers:
                record = self._records[number]
                _add_row(table, columns, _cells(record, self._evaluated.get(number, record.last)))
            header = f"{self._config.name}: {self._progress()}"
        parts: list[RenderableType] = [_single(header, "bold"), table]
        if hidden:
            dots = "..." if self._console.options.ascii_only else "…"
            best = self._config.objectives[0].metric
            rule = f"shown: running, best by {best}, newest"
            parts.append(_single(f"{dots} and {hidden} more ({rule})", "dim"))
        return Group(*parts)

    def _rows(self, room: int) -> tuple[list[int], int]:
        """Numbers of the trials to show in that many lines, and how many are left out."""
        running = [record.number for record in self._running()]
        if len(self._records) <= room:
            return running + self._newest_first, 0
        room -= 1  # for the line about those left out
        shown = running[:room]
        shown += self._best_first()[: (room - len(shown)) // 2]
        newest = [number for number in self._newest_first if number not in shown]
        shown += newest[: room - len(shown)]
        return shown, len(self._records) - len(shown)

    def _best_first(self) -> list[int]:
        """Complete trials by the first objective, those within all constraints before others."""
        objective = self._config.objectives[0]
        sign = 1 if objective.mode == "min" else -1
        ranked = []
        for record in self._records.values():
            value = record.metric(objective.metric)
            if record.status is TrialStatus.COMPLETE and value is not None:
                held = all(
                    (bounded := record.metric(c.metric)) is not None and c.holds(bounded)
                    for c in self._config.constraints
                )
                ranked.append((not held, sign * value, record.number))
        return [number for _, _, number in sorted(ranked)]

    def _progress(self) -> str:
        now = self._clock()
        total = max(self._planned, len(self._records))
        parts = [f"{len(self._newest_first)}/{total} finished"]
        if running := len(self._running()):
            parts.append(f"{running} running")
        parts.append(f"{duration(now - self._began)} elapsed")
        left = self._seconds_left(now, total)
        return ", ".join([*parts, f"about {duration(left)} left"] if left else parts)

    def _seconds_left(self, now: float, total: int) -> float | None:
        """What is left to do over as many as ran at once; None while nothing has finished.

        The median duration, because one trial that fails at once or spans an interruption of the
        sweep would move a mean.
        """
        ended = (self._records[number] for number in self._newest_first)
        durations = [r.ended - r.started for r in ended if r.ended is not None]
        if not durations:
            return None
        typical = median(durations)
        running = [max(typical - (now - r.started), 0.0) for r in self._running()]
        work = sum(running) + typical * max(total - len(self._records), 0)
        return max([work / self._most_at_once, *running])


def _planned_trials(config: SweepConfig) -> int:
    from tune.search_space import grid_size  # loads Optuna

    points = grid_size(config.search) if config.sampler == "grid" else None
    return min(config.budget.trials, points or config.budget.trials)


def _fitting(width: int) -> list[str]:
    """Titles of the columns that fit; the scores and the status go last."""
    columns = list(_WIDTHS)
    for title in _LEFT_OUT_FIRST:
        if sum(_WIDTHS[column] + 1 for column in columns) - 1 <= width:
            break
        columns.remove(title)
    return columns


def _add_row(table: Table, columns: list[str], cells: dict[str, str | Text]) -> None:
    table.add_row(*(cells.get(column, ABSENT) for column in columns))


def _single(line: str, style: str) -> Text:
    return Text(line, style, no_wrap=True, overflow="ellipsis")


def _base_cells(base: BaseRecord) -> dict[str, str | Text]:
    return {"trial": "base", **_score_cells(base.metrics)}


def _cells(record: TrialRecord, evaluation: Measurement | None) -> dict[str, str | Text]:
    config = record.config
    word = STATUS[record.status]
    return {
        "trial": str(record.number),
        "method": config.method,
        "rank": str(config.lora.rank) if config.lora else ABSENT,
        "alpha": f"{config.lora.alpha:g}" if config.lora else ABSENT,
        "lr": rate(config.learning_rate),
        "step": str(record.last.step) if record.last else ABSENT,
        "loss": metric_text(metric_keys.TRAIN_LOSS, record.metric(metric_keys.TRAIN_LOSS)),
        **_score_cells(evaluation.metrics if evaluation else {}),
        "status": Text(word.short, word.style),
    }


def _score_cells(metrics: dict[str, float]) -> dict[str, str | Text]:
    shown = {
        "in-domain": metric_keys.IN_DOMAIN_ACC,
        "forgetting": metric_keys.FORGETTING_MEAN,
        "OOD": metric_keys.OOD_ACC,
    }
    return {title: metric_text(key, metrics.get(key)) for title, key in shown.items()}


def _scores(metrics: dict[str, float]) -> str:
    """The scores that a measurement has, in words."""
    shown = {
        "loss": metric_keys.TRAIN_LOSS,
        "in-domain": metric_keys.IN_DOMAIN_ACC,
        "retention": metric_keys.RETENTION_ACC,
        "forgetting": metric_keys.FORGETTING_MEAN,
        "OOD": metric_keys.OOD_ACC,
    }
    told = [f"{n} {metric_text(key, metrics[key])}" for n, key in shown.items() if key in metrics]
    return ", ".join(told) or "nothing measured"


def count_statuses(records: Sequence[TrialRecord]) -> str:
    """Such as `18 complete, 1 failed`, of trials that nothing runs any more."""
    statuses = [record.status for record in records]
    words = {s: "interrupted" if s is TrialStatus.RUNNING else status_in_full(s) for s in STATUS}
    counted = [(statuses.count(status), word) for status, word in words.items()]
    return ", ".join(f"{count} {word}" for count, word in counted if count)


def duration(seconds: float) -> str:
    """Such as `45 s`, `3 min 12 s` or `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def one_line(text: str) -> str:
    """The text without line breaks and a terminal's control sequences."""
    return Text.from_ansi(" ".join(text.split())).plain
