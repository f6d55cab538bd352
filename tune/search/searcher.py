"""The searcher: which trial Tune runs next, and why no more follow."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from analysis.results.confirmation import planned_repeats, unconfirmed, winners
from trainables.config import TrialConfig
from trainables.records.schema import Measurement, TrialRecord, TrialStatus
from tune.config.sweep_config import SweepConfig
from tune.listeners import SweepListener
from tune.resources.placement import Room
from tune.search.history import SearchHistory
from tune.search.space import Params, first_points, grid_size, takes_least_memory
from tune.search.study import Study

MakeTrial = Callable[[int, Params, int, int], TrialConfig]

# As many in a row, on average over the methods, show a fault of a node or of the sweep file. Such a
# node is always the first that is free for another trial, whatever the others achieve.
_FAILURES_ALIKE = 5
_FEWEST_OF_METHOD = 3


class OptunaSearcher(Searcher, SweepListener):
    """Suggests trials to Tune and learns their outcomes as a listener of the sweep.

    Interrupted trials come first, then the points of `search.first`, then those that the sampler
    draws, then the confirmation of the best ones. A point that was already tried is repeated only
    if all draws are such, or it is one of the former that an earlier sweep alone has tried, and
    then with another seed.

    Args:
        config: the sweep.
        make_trial: turns a trial's number, parameters, attempt and seed into its configuration.
        finished: records of earlier runs that count as they are.
        interrupted: records of trials to resume before any new one is asked for.
        warm: records of other sweeps; the sampler learns from them, but no budget counts them.
        outside: records of the sweep that are no points of the search; no budget counts them.
        clock: monotonic clock, in seconds.
        began: when the command started, by this clock; defaults to now.
    """

    def __init__(
        self,
        config: SweepConfig,
        make_trial: MakeTrial,
        finished: Sequence[TrialRecord] = (),
        interrupted: Sequence[TrialRecord] = (),
        warm: Sequence[TrialRecord] = (),
        outside: Sequence[TrialRecord] = (),
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        super().__init__()
        self._clock, self._began = clock, clock() if began is None else began
        self._config = config
        self._make_trial = make_trial
        self._study = Study(config)
        self._first = first_points(config.search)
        self._again = sorted(interrupted, key=attrgetter("number"))
        # A driver killed while trials ran in parallel may leave a gap in the numbers; it is filled
        # first.
        earlier = sorted([*finished, *interrupted], key=attrgetter("number"))
        self._history = SearchHistory(earlier, warm, outside)
        # Interrupted trials count as running: the search does not end before they do.
        self._running = {record.number: record for record in interrupted}
        # Where each trial's attempt began, and where those stand that got no further in the last.
        self._began_at: dict[int, int] = {}
        self._suspect_at: dict[int, int] = {}
        self._winners: list[TrialRecord] | None = None
        self._is_stopping = False
        self._failures_alike: dict[str, list[str]] = defaultdict(list)
        self._is_failing = False
        self._room: Room | None = None
        self._waiting: defaultdict[str, list[TrialRecord]] = defaultdict(list)
        for record in [*warm, *earlier]:
            if record.confirms is None:
                self._study.add(record)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that never happens."""
        return {}

    @property
    def study(self) -> Any:
        """The Optuna study."""
        return self._study.optuna

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run or unfinished."""
        return not self._running and self._is_exhausted() and self._confirmation() is None

    @property
    def cut_short_by(self) -> str | None:
        """The field of `budget` that ended the sweep before it was done, or `failures`, if any."""
        spent = self._spent()
        is_done = self._is_searched() and next(self._repeats(), None) is None
        return None if is_done and spent != "failures" else spent

    def most_at_once(self, method: str) -> int:
        """At most how many of a method's trials there are at the same time, from now on."""
        running = sum(record.config.method == method for record in self._running.values())
        if self._spent():
            return running
        if self._winners is None:
            to_draw = self._to_draw()
            searched = self._history.searched + to_draw
            return max(running + to_draw, planned_repeats(self._config.confirm, searched))
        return running + sum(trial.config.method == method for trial, _ in self._repeats())

    def _spent(self) -> str | None:
        budget = self._config.budget
        if budget.hours is not None and self._clock() - self._began >= 3600 * budget.hours:
            return "hours"
        if budget.gpu_hours is not None and self._history.gpu_hours >= budget.gpu_hours:
            return "gpu_hours"
        return "failures" if self._is_failing else None

    def keep_within(self, room: Room) -> None:
        """Hold each suggestion back until there is room for it, letting no rival overtake it."""
        self._room = room

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial for Tune; None while there is none or no room for it."""
        if self._is_stopping:
            return str(Searcher.FINISHED)
        trial = self._with_room(self._room) if self._room else self._next()
        if trial is None:
            return None if self._running else str(Searcher.FINISHED)
        return {
            "trial": trial.config.model_dump(mode="json"),
            "params": trial.params,
            "attempt": trial.attempt,
            "confirms": trial.confirms,
            "suspect_at": self._suspect_at.get(trial.number),
        }

    def _with_room(self, room: Room) -> TrialRecord | None:
        """The first trial that has room, among those that wait and then among new ones."""
        if self._spent():
            self._withdraw_waiting()
        self._queue_interrupted(room)
        for queue in self._waiting.values():
            if queue and room.take(queue[0].config):
                return queue.pop(0)
        while self._waiting_count() < room.most_waiting:
            drawn = self._next()
            if drawn is None:
                return None
            queue = self._waiting[room.queue(drawn.config)]
            if not queue and room.take(drawn.config):
                return drawn
            queue.append(drawn)
        return None

    def _waiting_count(self) -> int:
        """How many trials wait; interrupted ones, of which there may be any number, count as one.

        Else those of one pool would keep new ones from being drawn for the others.
        """
        begun = [waits.attempt > 1 for queue in self._waiting.values() for waits in queue]
        return begun.count(False) + any(begun)

    def _queue_interrupted(self, room: Room) -> None:
        """Have interrupted trials wait for room before all new ones."""
        while self._again:
            trial = self._resume()
            queue = self._waiting[room.queue(trial.config)]
            queue.insert(sum(waits.attempt > 1 for waits in queue), trial)

    def _withdraw_waiting(self) -> None:
        """Forget the waiting trials that have not begun: the budget is spent."""
        for queue in self._waiting.values():
            for trial in [waits for waits in queue if waits.attempt == 1]:
                queue.remove(trial)
                self._history.withdraw(trial.number)
                del self._running[trial.number]
        self._study.withdraw_all_but(self._running.keys())

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: outcomes arrive through `trial_ended`, where their kind is known."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds the search's state."""

    def sweep_stopping(self) -> None:
        """Stop suggesting trials."""
        self._is_stopping = True

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Count what the trial has cost so far, as a start after a crash would."""
        self._history.take(record)

    def trial_interrupted(self, record: TrialRecord) -> None:
        """Suggest the trial again before any new one; without progress it may be what ended it."""
        if (step := _step(record)) > self._began_at.get(record.number, 0):
            self._suspect_at.pop(record.number, None)
        else:
            self._suspect_at[record.number] = step
        self._again.append(record)
        self._leave(record)

    def trial_ended(self, record: TrialRecord) -> None:
        """Tell the study how a trial ended."""
        self._history.take(record)
        self._running.pop(record.number, None)
        self._count_failure(record)
        self._leave(record)
        if record.confirms is None:
            self._study.tell(record)

    def _count_failure(self, record: TrialRecord) -> None:
        """Count a trial that failed for the same reason as the one before, measuring nothing.

        One that ran out of memory counts only if none of its method takes less: others may fit.
        """
        alike = self._failures_alike[record.config.method]
        reason = _reason(record)
        if record.last or reason not in alike:
            alike.clear()
        is_out_of_memory = record.status is TrialStatus.OUT_OF_MEMORY
        has_failed = record.status is TrialStatus.FAILED or (
            is_out_of_memory and takes_least_memory(self._config.search, record.config)
        )
        if has_failed and not record.last:
            alike.append(reason)
        counts = [len(self._failures_alike[method]) for method in self._config.search.methods]
        is_many = sum(counts) >= _FAILURES_ALIKE * len(counts)
        self._is_failing |= is_many and min(counts) >= _FEWEST_OF_METHOD

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Forget the points for which there was never room."""
        self._study.withdraw_all_but({record.number for record in records})

    def export(self, file: Path) -> None:
        """Write the study to an Optuna journal that `optuna-dashboard` can open."""
        self._study.export(file)

    def _next(self) -> TrialRecord | None:
        """Draw the next trial; None if it depends on running ones or there is none."""
        if self._again:
            return self._resume()
        if not self._is_exhausted():
            return self._next_point()
        # A trial that still runs may lose its process and have to be suggested again.
        if any(record.confirms is None for record in self._running.values()):
            return None
        confirmation = self._confirmation()
        if confirmation is None:
            return None
        trial, seed = confirmation
        return self._start(self._history.next_number, trial.params, seed, confirms=trial.number)

    def _resume(self) -> TrialRecord:
        """The next interrupted trial, in its next attempt."""
        record = self._again.pop(0)
        self._began_at[record.number] = _step(record)
        attempt = record.attempt + 1
        config = self._make_trial(record.number, record.params, attempt, record.config.seed)
        return record.model_copy(update={"config": config, "attempt": attempt})

    def _leave(self, record: TrialRecord) -> None:
        if self._room:
            self._room.give_back(record.number)

    def _next_point(self) -> TrialRecord:
        number = self._history.next_number
        first = next((point for point in self._first if not self._history.has(point)), None)
        params = self._draw(number) if first is None else first
        seed = self._history.unused_seed(params, self._config.seed)
        trial = self._start(number, params, seed)
        if first is not None:
            self._study.add(trial)
        return trial

    def _draw(self, number: int) -> Params:
        position = self._history.position(number)
        return self._study.ask(number, position, lambda point: self._history.tried(point) > 0)

    def _start(
        self, number: int, params: Params, seed: int, confirms: int | None = None
    ) -> TrialRecord:
        config = self._make_trial(number, params, 1, seed)
        record = TrialRecord(config=config, params=params, confirms=confirms, started=0)
        self._history.take(record)
        self._running[number] = record
        return record

    def _is_exhausted(self) -> bool:
        return self._is_searched() or self._spent() is not None

    def _is_searched(self) -> bool:
        return self._to_draw() == 0

    def _to_draw(self) -> int:
        """How many trials of the search there have yet to be, but for its budget of hours."""
        left = self._config.budget.trials - self._history.searched
        if self._config.sampler == "grid":
            left = min(left, grid_size(self._config.search) - self._study.count_points())
        return max(0, left)

    def _confirmation(self) -> tuple[TrialRecord, int] | None:
        """The next trial to repeat and its new seed; called once the search has ended."""
        return None if self._spent() else next(self._repeats(), None)

    def _repeats(self) -> Iterator[tuple[TrialRecord, int]]:
        """The repeats of winners that have yet to be drawn."""
        confirm = self._config.confirm
        if confirm is None:
            return iter(())
        if self._winners is None:
            self._winners = winners(self._config, self._history.records, confirm.top_k)
        return unconfirmed(confirm.seeds, self._winners, list(self._history.records))


def _step(record: TrialRecord) -> int:
    """The newest step that a trial has measured."""
    return record.last.step if record.last else 0


def _reason(record: TrialRecord) -> str:
    """Why a trial failed, without what differs between trials that fail alike.

    These are ports, processes, actors, folders, and how much memory was left or asked for.
    """
    if record.status is TrialStatus.OUT_OF_MEMORY:
        return str(record.status)
    return re.sub(r"\b[^\W\d]*\d\w*", "#", record.reason or "")
