"""Listeners that delete checkpoints that nothing needs, on a disk and in an object store."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from trainables.records.ledger import Ledger
from trainables.records.schema import ENDED_WELL, BaseRecord, Measurement, TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord
from trainables.storage.storage import open_storage
from trainables.training.checkpoint_files import (
    BEST,
    CHECKPOINTS,
    best_dir,
    checkpoints,
    remove_best,
    remove_checkpoints,
    remove_unfinished,
    seems_valid,
)
from tune.listeners import SweepListener

_WITHOUT_BEST = (TrialStatus.STOPPED_EARLY, TrialStatus.DIVERGED)
_SECONDS_BETWEEN_LOOKS = 30


class DiskBudget(SweepListener):
    """Deletes checkpoints that nothing needs, and more if the sweep has too many.

    A trial that ended well needs none; others keep theirs for `--retry-failed`. Over the cap, trial
    by trial from the oldest on, the weights of the best evaluation are deleted, then all
    checkpoints but the newest whole one. Final weights are never deleted.

    Args:
        ledger: of the sweep.
        gib: the cap on all checkpoints and best weights, GiB; None for no cap.
        clock: monotonic clock, in seconds.
    """

    def __init__(
        self, ledger: Ledger, gib: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._bytes = None if gib is None else gib * 2**30
        self._clock = clock
        self._looked = -float(_SECONDS_BETWEEN_LOOKS)
        self._records: dict[int, TrialRecord] = {}

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        """Clean up after the trials of earlier runs."""
        for record in history:
            self._tidy(record)
        self._enforce()

    def trial_started(self, record: TrialRecord) -> None:
        """Register the trial."""
        self._records[record.number] = record

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """Check now and then, as a checkpoint may have been written."""
        if self._clock() - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._enforce()

    def trial_ended(self, record: TrialRecord) -> None:
        """Delete what nothing needs."""
        self._tidy(record)
        self._enforce()

    def sweep_ended(self, records: Sequence[TrialRecord]) -> None:
        """Clean up after workers that wrote until the end."""
        for record in records:
            if record.status is not TrialStatus.RUNNING:
                self._tidy(record)

    def _tidy(self, record: TrialRecord) -> None:
        attempts = self._ledger.folder.attempts(record)
        remove_unfinished(attempts)
        if record.status in ENDED_WELL:
            remove_checkpoints(attempts)
        if record.status in _WITHOUT_BEST:
            remove_best(attempts)
        self._register(record)

    def _register(self, record: TrialRecord) -> None:
        if record.status in ENDED_WELL and record.best_weights_dir is None:
            self._records.pop(record.number, None)
        else:
            self._records[record.number] = record

    def _enforce(self) -> None:
        self._looked = self._clock()
        if self._bytes is None:
            return
        oldest_first = sorted(self._records.values(), key=lambda record: record.started)
        attempts = {r.number: self._ledger.folder.attempts(r) for r in oldest_first}
        all_attempts = [folder for of_trial in attempts.values() for folder in of_trial]
        used = sum(map(_size, (*checkpoints(all_attempts), *map(best_dir, all_attempts))))
        for record in oldest_first:
            surplus = _surplus(attempts[record.number])
            while used > self._bytes and (folder := next(surplus, None)):
                used -= _size(folder)
                shutil.rmtree(folder, ignore_errors=True)
                if _is_at(record.best_weights_dir, folder):
                    self._forget_best(record)

    def _forget_best(self, record: TrialRecord) -> None:
        record = record.model_copy(update={"best_weights_dir": None})
        self._ledger.write_trial(record)
        self._register(record)


class PublishedCheckpoints(SweepListener):
    """Deletes published checkpoints that nothing needs.

    An object store does not fill up, and each look into it is a request, so there is no cap.
    """

    def trial_ended(self, record: TrialRecord) -> None:
        """Delete its checkpoints and superseded best weights."""
        if record.status in ENDED_WELL:
            for address in (*record.config.earlier_attempts, record.config.output_dir):
                storage = open_storage(address)
                storage.remove(CHECKPOINTS)
                if f"{address}/{BEST}" != record.best_weights_dir:
                    storage.remove(BEST)


def _surplus(attempts: Sequence[Path]) -> Iterator[Path]:
    """What may be deleted of a trial, in this order."""
    yield from (best_dir(attempt) for attempt in attempts if best_dir(attempt).exists())
    found = checkpoints(attempts)
    with suppress(OSError):  # if the newest cannot be read, the others stay
        if len(found) > 1 and seems_valid(found[0]):
            yield from found[1:]


def _is_at(recorded: str | None, folder: Path) -> bool:
    """Whether a recorded path is this folder, even if the sweep was moved."""
    return recorded is not None and Path(recorded).parts[-2:] == folder.parts[-2:]


def _size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a worker may have deleted it
                total += Path(place, name).stat().st_size
    return total
