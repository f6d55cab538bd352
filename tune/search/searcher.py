"""Which trial Tune runs next, and why the search ends."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from analysis.results.confirmation import unconfirmed, winners
from trainables.config import TrialConfig
from trainables.records.schema import Measurement, TrialRecord
from tune.config.sweep_config import SweepConfig
from tune.listeners import SweepListener
from tune.resources.placement import Room
from tune.search.history import SearchHistory
from tune.search.space import Params, first_points, grid_size
from tune.search.studies import Studies

MakeTrial = Callable[[int, Params, int, int], TrialConfig]


class OptunaSearcher(Searcher, SweepListener):
    """Suggests trials to Tune and learns their outcomes as a listener of the sweep.

    Interrupted trials come first, then the points of `search.first`, then points of the sampler,
    then repeats of the best ones. A point that was already tried is repeated with another seed, and
    only if the sampler draws no new one or `search.first` names it and no trial of this sweep had
    it.

    Args:
        config: the sweep.
        make_trial: turns a trial's number, parameters, attempt and seed into its configuration.
        finished: records of the trials that have ended.
        interrupted: records of the trials to resume.
        warm: records of other sweeps; the sampler learns from them, and no budget counts them.
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
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        super().__init__()
        self._clock, self._began = clock, clock() if began is None else began
        self._config = config
        self._make_trial = make_trial
        self._studies = Studies(config, warm)
        self._first = first_points(config.search)
        self._again = sorted(interrupted, key=attrgetter("number"))
        earlier = sorted([*finished, *interrupted], key=attrgetter("number"))
        self._history = SearchHistory(earlier, warm)
        self._running = {record.number: record for record in interrupted}
        # The step at which each trial's attempt began, and that of those that made no progress.
        self._began_at: dict[int, int] = {}
        self._suspect_at: dict[int, int] = {}
        self._winners: list[TrialRecord] | None = None
        self._is_stopping = False
        self._room: Room | None = None
        self._waiting: defaultdict[str, list[TrialRecord]] = defaultdict(list)
        for record in earlier:
            if record.confirms is None:
                self._studies.take(record)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that never happens."""
        return {}

    @property
    def study(self) -> Any:
        """The Optuna study."""
        return self._studies.optuna

    @property
    def is_done(self) -> bool:
        """Whether all trials have ended and no other follows."""
        return not self._running and self._is_exhausted() and self._confirmation() is None

    @property
    def cut_short_by(self) -> str | None:
        """The field of `budget` that ended the sweep before it was done, or None."""
        is_done = self._is_searched() and next(self._repeats(), None) is None
        return None if is_done else self._spent()

    def _spent(self) -> str | None:
        budget = self._config.budget
        if budget.hours is not None and self._clock() - self._began >= 3600 * budget.hours:
            return "hours"
        if budget.gpu_hours is not None and self._history.gpu_hours >= budget.gpu_hours:
            return "gpu_hours"
        return None

    def keep_within(self, room: Room) -> None:
        """Suggest a trial only once there is room for it; until then no later one overtakes it."""
        self._room = room

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial for Tune; None if it has to wait."""
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
        """The first waiting trial that has room, else a new one."""
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
        """How many trials wait; all interrupted ones count as one, or they would block new ones."""
        begun = [waits.attempt > 1 for queue in self._waiting.values() for waits in queue]
        return begun.count(False) + any(begun)

    def _queue_interrupted(self, room: Room) -> None:
        while self._again:
            trial = self._resume()
            queue = self._waiting[room.queue(trial.config)]
            queue.insert(sum(waits.attempt > 1 for waits in queue), trial)

    def _withdraw_waiting(self) -> None:
        """Forget the waiting trials that have not begun."""
        for queue in self._waiting.values():
            for trial in [waits for waits in queue if waits.attempt == 1]:
                queue.remove(trial)
                self._history.withdraw(trial.number)
                del self._running[trial.number]
        self._studies.withdraw_all_but(self._running.keys())

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
        """Count what the trial has cost so far."""
        self._history.take(record)

    point_measured = measured

    def trial_interrupted(self, record: TrialRecord) -> None:
        """Suggest the trial again before any new one; without progress it is suspect."""
        if (step := _step(record)) > self._began_at.get(record.number, 0):
            self._suspect_at.pop(record.number, None)
        else:
            self._suspect_at[record.number] = step
        self._again.append(record)
        self._give_back(record)

    def trial_ended(self, record: TrialRecord) -> None:
        """Learn how a trial ended, with all its points."""
        self._history.take(record)
        self._running.pop(record.number, None)
        self._give_back(record)
        if record.confirms is None:
            self._studies.take(record)

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Forget the points that never had room."""
        self._studies.withdraw_all_but({record.number for record in records})

    def export(self, file: Path) -> None:
        """Write the study to an Optuna journal that `optuna-dashboard` can open."""
        self._studies.export(file)

    def _next(self) -> TrialRecord | None:
        """The next trial; None if there is none or it depends on running ones."""
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
        record = self._again.pop(0)
        self._began_at[record.number] = _step(record)
        attempt = record.attempt + 1
        config = self._make_trial(record.number, record.params, attempt, record.config.seed)
        evaluated = {point.strength for point in record.points if point.repair is None}
        left = tuple(s for s in config.strengths if s not in evaluated)
        config = config.model_copy(update={"strengths": left})
        return record.model_copy(update={"config": config, "attempt": attempt})

    def _give_back(self, record: TrialRecord) -> None:
        if self._room:
            self._room.give_back(record.number)

    def _next_point(self) -> TrialRecord:
        number = self._history.next_number
        first = next((point for point in self._first if not self._history.has(point)), None)
        params = self._studies.ask(number, self._history) if first is None else first
        seed = self._history.unused_seed(params, self._config.seed)
        trial = self._start(number, params, seed)
        self._studies.take(trial)
        return trial

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
        """How many trials of the search are still to be drawn, disregarding hours."""
        left = self._config.budget.trials - self._history.searched
        if self._config.sampler == "grid":
            left = min(left, grid_size(self._config.search) - self._studies.count_points())
        return max(0, left)

    def _confirmation(self) -> tuple[TrialRecord, int] | None:
        """The next trial to repeat and its seed."""
        return None if self._spent() else next(self._repeats(), None)

    def _repeats(self) -> Iterator[tuple[TrialRecord, int]]:
        """The repeats of winners that are still to be drawn."""
        confirm = self._config.confirm
        if confirm is None:
            return iter(())
        if self._winners is None:
            self._winners = winners(self._config, confirm, self._history.records)
        return unconfirmed(confirm.seeds, self._winners, list(self._history.records))


def _step(record: TrialRecord) -> int:
    return record.last.step if record.last else 0
