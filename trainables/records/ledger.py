"""The ledger: reads and writes the records of a sweep.

    SWEEP/
      sweep.json          configuration and provenance
      base/               the base model's evaluation (see `evaluation.base`)
      trials/0007/
        trial.json        the trial as it stands, replaced atomically
        metrics.jsonl     its measurements, appended
        strengths.jsonl   those of its trained weights at other strengths, and repaired
        attempt_1/        what the worker wrote: weights, items, log
      inspection/         what inspections found
      ray/                what Tune saves, and nothing reads
      lock.json           the driver that runs it, with lock.*.json: heartbeats, and the drivers
                          that took the sweep over
      stop/0007           asks that driver to end a trial
      warm_start.jsonl    trials of other sweeps that the search started from
      results.csv  confirmed.csv  study.journal  sweep.log  wandb/     mirrors of the above

Only the driver writes records. Workers write below their own attempt, other commands in `stop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainables.config import Frozen
from trainables.errors import Fault, UserError
from trainables.gc_pause import gc_paused
from trainables.records.item_records import items_file
from trainables.records.metrics_file import read_lines, to_line
from trainables.records.reading import Record, read_each, read_record
from trainables.records.record_paths import SweepFolder, trial_numbers
from trainables.records.schema import BaseRecord, ItemScore, Measurement, TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord
from trainables.storage.base_storage import read_or_none
from trainables.storage.storage import SEE_THE_STORE, Location, is_address, open_storage


class Ledger:
    """Reads and writes the records of one sweep.

    Methods that read raise `UserError` if a record is damaged or a newer version wrote it.

    Args:
        location: the sweep's folder, or its address in an object store.
        may_write: called before each write; raises if this driver has lost the sweep.
    """

    def __init__(self, location: Location, may_write: Callable[[], None] = lambda: None) -> None:
        self.folder = SweepFolder(location)
        self.storage = open_storage(location)
        self._may_write = may_write
        self._whole: set[Path] = set()

    def exists(self) -> bool:
        """Whether the folder holds a sweep."""
        return self._exists(self.folder.sweep_json)

    def has_base(self) -> bool:
        """Whether the base's evaluation exists."""
        return self._exists(self.folder.base_json)

    @gc_paused()
    def check(self) -> None:
        """Read everything; the `UserError` names all that is damaged."""
        of_base = [self.base] if self.has_base() else []
        read_each([self.sweep, self.trials, self.warm_start, *of_base, self.histories])

    def write_sweep(self, record: SweepRecord) -> None:
        """Create or replace the sweep's own record."""
        self._write(self.folder.sweep_json, record)

    def sweep(self) -> SweepRecord:
        """The sweep's own record."""
        file = self.folder.sweep_json
        return self._record(SweepRecord, file, self._content(file), "restore it from a copy")

    def base(self) -> BaseRecord:
        """The base model's evaluation."""
        file = self.folder.base_json
        return self._record(BaseRecord, file, self._content(file), self._base_remedy)

    def write_trial(self, record: TrialRecord) -> None:
        """Create or replace a trial's record."""
        self._write(self.folder.trial_json(record.number), record)
        if record.status is not TrialStatus.RUNNING:
            of_trial = (self.folder.metrics(record.number), self.folder.strengths(record.number))
            with self._writing():
                for log in of_trial:
                    self.storage.close_log(self.folder.name(log))

    def write_warm_start(self, records: Sequence[TrialRecord]) -> None:
        """Keep the trials that the search starts from, so that restarts use the same."""
        lines = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        with self._writing():
            self.storage.write_log(self.folder.name(self.folder.warm_start), lines)

    def warm_start(self) -> list[TrialRecord]:
        """Trials of other sweeps that the search started from."""
        file = self.folder.warm_start
        place, lines = self.folder.place(file), self.storage.read_log(self.folder.name(file))
        remedy = f"restore it from a copy, or delete {place} to read those sweeps again"
        return _each_line(TrialRecord, lines, place, remedy)

    def append(self, number: int, measurement: Measurement) -> None:
        """Add a measurement to a trial's history, or to its points."""
        is_point = measurement.is_altered
        file = self.folder.strengths(number) if is_point else self.folder.metrics(number)
        with self._writing():
            if file not in self._whole:
                self._drop_damaged_end(file)
            self._whole.discard(file)  # until the entire line is on disk
            self.storage.append(self.folder.name(file), to_line(measurement))
            self._whole.add(file)

    def trial(self, number: int) -> TrialRecord:
        """One trial's record; `FileNotFoundError` if there is none."""
        file = self.folder.trial_json(number)
        return self._trial(file, self._content(file))

    @gc_paused()
    def trials(self) -> list[TrialRecord]:
        """Every trial's record, by number."""
        files = [self.folder.trial_json(number) for number in self._numbers()]
        contents = self.storage.read_all([self.folder.name(file) for file in files])
        records = read_each(
            partial(self._trial, file, content)
            for file, content in zip(files, contents, strict=True)
            if content is not None
        )
        return sorted(records, key=lambda record: record.number)

    def with_newest(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """These records, with the newest value of each metric, such as the loss."""
        if all(record.status is TrialStatus.COMPLETE for record in records):
            return list(records)
        histories = self.histories()
        return [record.with_newest(histories.get(record.number, [])) for record in records]

    def measurements(self, number: int) -> list[Measurement]:
        """A trial's measurements by step; those of a later attempt replace earlier ones."""
        file = self.folder.metrics(number)
        log = self.storage.read_log(self.folder.name(file))
        return _in_order(read_lines(log, self.folder.place(file)).measurements)

    def points(self, number: int) -> list[Measurement]:
        """A trial's points as they came; a later one of the same strength and repair counts."""
        file = self.folder.strengths(number)
        log = self.storage.read_log(self.folder.name(file))
        return read_lines(log, self.folder.place(file)).measurements

    @gc_paused()
    def histories(self, as_they_came: bool = False) -> dict[int, list[Measurement]]:
        """The measurements of every trial; `as_they_came` includes those repeated later."""
        numbers = self._numbers()
        files = [self.folder.metrics(number) for number in numbers]
        logs = self.storage.read_logs([self.folder.name(file) for file in files])
        places = map(self.folder.place, files)
        found = read_each(
            partial(read_lines, log, place) for log, place in zip(logs, places, strict=True)
        )
        came = {number: file.measurements for number, file in zip(numbers, found, strict=True)}
        return came if as_they_came else {n: _in_order(each) for n, each in came.items()}

    def fetch_log(self) -> None:
        """Fetch `sweep.log` from an object store, unless this driver was the last to add to it."""
        log = self.folder.log
        published = read_or_none(self.storage, self.folder.name(log))
        if published and not (log.exists() and log.read_bytes().startswith(published)):
            log.write_bytes(published)

    def publish_mirrors(self) -> None:
        """Copy the mirrors to the object store; on a disk they are in place already."""
        for file in self.folder.mirrors:
            if self.folder.is_in_store and file.exists():
                self.storage.publish(file, self.folder.name(file))

    def base_items(self) -> list[ItemScore]:
        """The base model's outcome on every item."""
        file = self.folder.base_items
        place = self.folder.place(file)
        return _each_line(ItemScore, self._content(file), place, self._base_remedy)

    def items(self, record: TrialRecord) -> list[ItemScore]:
        """A trial's outcome on every item at its newest evaluation, or point; possibly empty."""
        if record.last is None:
            return []
        folder = self.folder.attempt(record.number, record.last.attempt)
        file = items_file(folder, record.last.name)
        lines = read_or_none(self.storage, self.folder.name(file)) or b""
        return _each_line(ItemScore, lines, self.folder.place(file), "restore it from a copy")

    def weights(self, record: TrialRecord) -> Path | None:
        """A trial's weights within the sweep's folder, which may have been moved; None without.

        Raises:
            UserError: the recorded path leads out of the folder of the trial's attempt.
        """
        return self._find_folder(record, "weights_dir")

    def located(self, record: TrialRecord) -> TrialRecord:
        """The record with the present paths of weights, and None for those that are gone."""
        now: dict[str, str | None] = {}
        for field in ("weights_dir", "best_weights_dir"):
            recorded, found = getattr(record, field), self._find_folder(record, field)
            in_store = recorded if recorded and is_address(recorded) else None
            now[field] = str(found.absolute()) if found else in_store
        return record.model_copy(update=now)

    def _find_folder(self, record: TrialRecord, field: str) -> Path | None:
        recorded = getattr(record, field)
        if recorded is None:
            return None
        for attempt in reversed(self.folder.attempts(record)):
            found = attempt / Path(recorded).name
            if found.is_dir():
                inside = self.folder.root.resolve() / self.folder.name(attempt)
                if inside not in found.resolve().parents:
                    place = self.folder.place(self.folder.trial_json(record.number))
                    rule = f"{field} {recorded} leads out of {attempt}, to {found.resolve()}"
                    remedy = "put the files themselves there if you trust who made this folder"
                    raise UserError([Fault(place, rule, remedy)])
                return found
        return None

    def _numbers(self) -> list[int]:
        """Numbers of the trials that have a folder."""
        names = self.storage.children(self.folder.name(self.folder.trials))
        return sorted(trial_numbers(names))

    def _drop_damaged_end(self, file: Path) -> None:
        """Drop the partial line that a crash left."""
        content = self.storage.read_log(name := self.folder.name(file))
        whole = read_lines(content, self.folder.place(file)).whole
        if whole != content:
            self.storage.write_log(name, whole)

    @property
    def _base_remedy(self) -> str:
        return f"delete {self.folder.place(self.folder.base)} to evaluate the base anew"

    def _exists(self, file: Path) -> bool:
        return self.storage.exists(self.folder.name(file))

    def _content(self, file: Path) -> bytes:
        return self.storage.read(self.folder.name(file))

    def _trial(self, file: Path, content: bytes) -> TrialRecord:
        trial = self.folder.place(file.parent)
        remedy = f"restore it from a copy, or delete {trial} to run the trial again"
        return self._record(TrialRecord, file, content, remedy)

    def _record(self, kind: type[Record], file: Path, content: bytes, remedy: str) -> Record:
        return read_record(kind, content, self.folder.place(file), remedy)

    def _write(self, file: Path, record: Frozen) -> None:
        with self._writing():
            content = record.model_dump_json(indent=2).encode()
            self.storage.write(self.folder.name(file), content, self._may_write)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._may_write()
        try:
            yield
        except OSError as error:
            raise cannot_write(self.folder.location, error) from error


def cannot_write(location: Location, error: OSError | str) -> UserError:
    """The error for a sweep folder that cannot be written to."""
    reason = error if isinstance(error, str) else error.strerror or str(error)
    on_disk = "make room or make it writable, and type the same command again"
    remedy = SEE_THE_STORE if isinstance(location, str) else on_disk
    return UserError([Fault("--output-dir", f"cannot write to {location}: {reason}", remedy)])


def _each_line(kind: type[Record], lines: bytes, place: str, remedy: str) -> list[Record]:
    return [
        read_record(kind, line, place, remedy, number)
        for number, line in enumerate(lines.splitlines(), start=1)
    ]


def _in_order(measurements: list[Measurement]) -> list[Measurement]:
    ordered: list[Measurement] = []
    for measurement in measurements:
        while ordered and ordered[-1].step >= measurement.step:
            ordered.pop()
        ordered.append(measurement)
    return ordered
