"""A sweep as a table on a terminal: the base, then as many trials as there is room for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import nsmallest
from itertools import islice
from math import inf
from statistics import fmean

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.results.confirmation import planned_repeats
from analysis.results.formatting import (
    ABSENT,
    INTERRUPTED,
    STATUS,
    duration,
    metric_text,
    rate,
    score_metrics,
    without_controls,
)
from analysis.results.pareto import Goals, is_feasible, objective_losses
from trainables import metric_keys
from trainables.records.schema import (
    ENDED_WELL,
    BaseRecord,
    Measurement,
    TrialRecord,
    TrialStatus,
    points_of,
)

# Of a trial's best point: whether it violates a constraint, its losses, the trial's number.
Rank = tuple[bool, list[float], int]

_OTHER_LINES = 4  # header, column titles, base, and one that keeps the cursor on the screen
_TYPICAL = 100  # newest trials whose durations predict those of the next ones
_WIDTHS = {
    "trial": 5,
    "recipe": 8,
    "capacity": 8,
    "lr": 7,
    "step": 5,
    "loss": 5,
    "in-domain": 9,
    "validation": 10,
    "forgetting": 10,
    "OOD": 5,
}
_OF_STATUS, _NARROWEST = 9, 7
_TITLES = {
    metric_keys.IN_DOMAIN_ACC: "in-domain",
    metric_keys.VALIDATION_LOSS: "validation",
    metric_keys.FORGETTING_MEAN: "forgetting",
    metric_keys.OOD_ACC: "OOD",
}
_MOST_TELLING = ("lr", "loss", "recipe", "capacity", "step")


class SweepTable:
    """State of a sweep, and its picture.

    Args:
        name: of the sweep.
        searched: number of trials in the search; repeat runs of the winners follow.
        goals: the first objective determines the best trials.
        began: when its command was started, seconds since the epoch.
        hours: hours after `began` in which new trials may start; None for no limit.

    Attributes:
        base: None until it is known.
        has_ended: whether nothing more will start; what has no final status then is interrupted.
    """

    def __init__(
        self, name: str, searched: int, goals: Goals, began: float, hours: float | None
    ) -> None:
        self._name = name
        self._searched = searched
        self._goals = goals
        self.began = began
        self._seconds_of_starts = inf if hours is None else 3600 * hours
        self.base: BaseRecord | None = None
        self.has_ended = False
        self._records: dict[int, TrialRecord] = {}
        self._evaluated: dict[int, Measurement] = {}
        self._running: set[int] = set()
        self._waiting: set[int] = set()  # of those, for their next attempt
        self._repeats: set[int] = set()
        self._ended: dict[int, None] = {}  # in the order they ended
        self._ranks: dict[int, Rank] = {}
        self._best_points: dict[int, TrialRecord] = {}
        self._most_at_once = 1

    def take(self, record: TrialRecord) -> None:
        """Add a trial, or replace what was known of it."""
        self._note(record)
        self._waiting.discard(record.number)
        self._ended.pop(record.number, None)
        if record.status is not TrialStatus.RUNNING:
            self._ended[record.number] = None
        self._place(record)
        self._most_at_once = max(self._most_at_once, len(self._running))

    def interrupt(self, record: TrialRecord) -> None:
        """Note that a trial waits until it is taken again, as it does in its next attempt."""
        self._waiting.add(record.number)

    def update(self, record: TrialRecord, measurement: Measurement) -> None:
        """Keep the newest evaluation; points of the training curve update only step and loss."""
        self._note(record)
        if measurement.is_evaluation:
            self._evaluated[record.number] = measurement

    def _note(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        if record.status is TrialStatus.RUNNING:
            self._running.add(record.number)
        else:
            self._running.discard(record.number)
        if record.confirms is not None:
            self._repeats.add(record.number)

    def _planned(self) -> int:
        """How many trials and repeats there will be, if there are as many winners."""
        searched = max(self._searched, len(self._records) - len(self._repeats))
        recipes = {record.config.recipe for record in self._records.values()}
        repeats = planned_repeats(self._goals.confirm, searched, len(recipes))
        return searched + max(repeats, len(self._repeats))

    def progress(self, now: float) -> str:
        """Such as `3/16 finished, 2 running, 40 s elapsed, about 2 min 05 s left`."""
        total = self._planned()
        parts = [f"{len(self._ended)}/{total} finished"]
        if running := len(self.running()):
            parts.append(f"{running} running")
        if broken_off := len(self._broken_off):
            parts.append(f"{broken_off} {INTERRUPTED}")
        parts.append(f"{duration(now - self.began)} elapsed")
        left = None if self.has_ended else self._seconds_left(now)
        return ", ".join([*parts, f"about {duration(left)} left"] if left else parts)

    def render(self, console: Console, now: float, footer: int = 0) -> RenderableType:
        """The picture, as wide and high as the console; `footer` lines are left free below it."""
        room = max(1, console.height - _OTHER_LINES - footer)
        numbers, hidden = self._rows(room)
        broken_off = self._broken_off
        scores = self._judged_by()
        of_status = len(INTERRUPTED) if broken_off else _OF_STATUS
        columns = _fitting(console.width, of_status, scores, self._aims)
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            side: JustifyMethod = "left" if column in ("recipe", "status") else "right"
            table.add_column(Text(without_controls(column)), no_wrap=True, justify=side)
        if self.base is not None:
            _add_row(table, columns, {"trial": "base", **_score_cells(self.base.metrics, scores)})
        for number in numbers:
            record = self._records[number]
            cells = _cells(record, self._evaluated.get(number, record.last), scores)
            if number in broken_off:
                cells["status"] = Text(INTERRUPTED, "yellow")
            _add_row(table, columns, cells)
        parts: list[RenderableType] = [single(f"{self._name}: {self.progress(now)}", "bold"), table]
        if hidden:
            dots = "..." if console.options.ascii_only else "…"
            rule = f"shown: running, best by {self._goals.objectives[0].metric}, newest"
            parts.append(single(f"{dots} and {hidden} more ({rule})", "dim"))
        return Group(*parts)

    def _judged_by(self) -> list[str]:
        """What has a column: the scores that are measured, then other objectives."""
        measured = self.base.metrics if self.base else None
        scores = [
            key for key in score_metrics(measured or ()) if measured is None or key in measured
        ]
        keys = dict.fromkeys([*scores, *self._aims])
        return [key for key in keys if key != metric_keys.TRAIN_LOSS]

    @property
    def _aims(self) -> list[str]:
        return [objective.metric for objective in self._goals.objectives]

    def get(self, number: int) -> TrialRecord | None:
        """The newest record of a trial; None if it is unknown."""
        return self._records.get(number)

    def best_first(self, most: int) -> list[TrialRecord]:
        """Complete trials by the first objective, each at the strength at which it is best.

        Those within all constraints come first. Ties go to the better in the next objective, so
        none stands before one that dominates it.
        """
        best = nsmallest(most, self._ranks.values())
        return [self._best_points[number] for _, _, number in best]

    def running(self) -> list[TrialRecord]:
        """Trials that have begun, and are neither ended nor interrupted, by number."""
        return [self._records[number] for number in sorted(self._running - self._broken_off)]

    @property
    def _broken_off(self) -> set[int]:
        """Trials without a final status that do not run: for now or, at the end, for good."""
        return self._running if self.has_ended else self._running & self._waiting

    def _place(self, record: TrialRecord) -> None:
        """Rank a complete trial of the search; repeat runs are left out: they were selected."""
        self._ranks.pop(record.number, None)
        for point in points_of([record]):
            if losses := objective_losses(self._goals, point):
                rank = (not is_feasible(self._goals, point), losses, record.number)
                if rank < self._ranks.get(record.number, (True, [inf], 0)):
                    self._ranks[record.number] = rank
                    self._best_points[record.number] = point

    def _rows(self, room: int) -> tuple[list[int], int]:
        """Numbers of the trials to show in `room` lines, and how many are left out."""
        running = sorted(self._running)
        if len(self._records) <= room:
            return [*running, *reversed(self._ended)], 0
        room -= 1  # for the line about those left out
        shown = running[:room]
        best = self.best_first((room - len(shown)) // 2)
        shown += [record.number for record in best]
        newest = (number for number in reversed(self._ended) if number not in shown)
        shown += islice(newest, max(0, room - len(shown)))
        return shown, len(self._records) - len(shown)

    def _seconds_left(self, now: float) -> float | None:
        """Seconds of work left, shared by as many trials as ran at once; None if unknown.

        A trial takes as long as the newest ones that ended well took on average.
        """
        newest = map(self._records.__getitem__, reversed(self._ended))
        ended_well = islice((r for r in newest if r.status in ENDED_WELL), _TYPICAL)
        durations = [r.seconds for r in ended_well if r.seconds is not None]
        if not durations:
            return None
        typical = fmean(durations)
        running = [max(typical - self._records[n].seconds_at(now), 0.0) for n in self._running]
        for_starts = max(self.began + self._seconds_of_starts - now, 0.0)
        to_start = self._planned() - len(self._records) if for_starts else 0
        work = sum(running) + typical * to_start
        return min(max([work / self._most_at_once, *running]), for_starts + typical)


def single(line: str, style: str) -> Text:
    """One line of the picture, cut off at the edge of the terminal."""
    return Text(without_controls(line), style, no_wrap=True, overflow="ellipsis")


def _fitting(width: int, of_status: int, scores: Collection[str], aims: Sequence[str]) -> list[str]:
    """Titles of the columns that fit, of which status is so wide.

    Room goes to the objectives first, then to the other scores, then to settings.
    """
    absent = {title for key, title in _TITLES.items() if key not in scores}
    widths = {title: width for title, width in _WIDTHS.items() if title not in absent}
    widths |= {key: max(len(key), _NARROWEST) for key in scores if key not in _TITLES}
    widths |= {"status": of_status}
    judged_by = [_TITLES.get(key, key) for key in (*aims, *scores) if key in scores]
    room, fitting = width + 1, set()
    for title in dict.fromkeys(["trial", "status", *judged_by, *_MOST_TELLING]):
        if widths[title] < room:
            fitting.add(title)
            room -= widths[title] + 1
    return [title for title in widths if title in fitting]


def _add_row(table: Table, columns: list[str], cells: dict[str, str | Text]) -> None:
    table.add_row(*(cells.get(column, ABSENT) for column in columns))


def _cells(
    record: TrialRecord, evaluation: Measurement | None, scores: Collection[str]
) -> dict[str, str | Text]:
    config = record.config
    word = STATUS[record.status]
    return {
        "trial": str(record.number),
        "recipe": config.recipe,
        "capacity": str(config.capacity or ABSENT),
        "lr": rate(config.learning_rate),
        "step": str(record.last.step) if record.last else ABSENT,
        "loss": metric_text(metric_keys.TRAIN_LOSS, record.metric(metric_keys.TRAIN_LOSS)),
        **_score_cells(evaluation.metrics if evaluation else {}, scores),
        "status": Text(word.short, word.style),
    }


def _score_cells(metrics: dict[str, float], scores: Collection[str]) -> dict[str, str | Text]:
    return {_TITLES.get(key, key): metric_text(key, metrics.get(key)) for key in scores}
