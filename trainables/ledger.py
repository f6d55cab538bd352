"""The ledger: what is on disk about a sweep, and the one place that knows where.

    SWEEP/
      sweep.json          configuration and provenance
      base/               the base model's evaluation (see `base_evaluation`)
      trials/0007/
        trial.json        the trial as it stands, replaced atomically
        metrics.jsonl     its measurements, appended
        attempt_1/        what the worker wrote: weights, items, log
      lock.json           the driver that runs it now
      warm_start.jsonl    trials of other sweeps that the search started from
      results.csv  confirmed.csv  study.journal  sweep.log  wandb/     mirrors of the above

The driver alone writes records; workers write only below their own attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainables.config import Frozen
from trainables.errors import Fault, UserError
from trainables.metrics_file import MetricsFile, read_lines, to_line
from trainables.record_faults import Record, read_record
from trainables.records import BaseRecord, Measurement, SweepRecord, TrialRecord
from trainables.storage import open_storage


class SweepFolder:
    """Owner of every path in a sweep's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sweep_json = root / "sweep.json"
        self.lock = root / "lock.json"
        self.base = root / "base"
        self.base_json = self.base / "base.json"
        self.trials = root / "trials"
        self.warm_start = root / "warm_start.jsonl"
        self.results_csv = root / "results.csv"
        self.confirmed_csv = root / "confirmed.csv"
        self.study = root / "study.journal"
        self.log = root / "sweep.log"
        self.ray = root / "ray"

    def lock_claim(self, token: str) -> Path:
        """Where a driver says that it takes over the lock of that token."""
        return self.root / f"lock.{token}.json"

    def is_lock_claim(self, name: str) -> bool:
        """Whether a file of that name in the sweep's folder is such a claim."""
        return name.startswith("lock.") and name != self.lock.name

    def trial(self, number: int) -> Path:
        """Folder of one trial."""
        return self.trials / f"{number:04d}"

    def trial_json(self, number: int) -> Path:
        """The trial's record."""
        return self.trial(number) / "trial.json"

    def metrics(self, number: int) -> Path:
        """The trial's measurements."""
        return self.trial(number) / "metrics.jsonl"

    def attempt(self, number: int, attempt: int) -> Path:
        """Where the workers of one attempt write."""
        return self.trial(number) / f"attempt_{attempt}"


class Ledger:
    """Reads and writes the records of one sweep.

    Whatever reads raises `UserError` where a record was damaged, or a newer version wrote it.

    Args:
        root: the sweep's folder.
        may_write: called before each writing; raises where this driver has lost the sweep.
    """

    def __init__(self, root: Path, may_write: Callable[[], None] = lambda: None) -> None:
        self.folder = SweepFolder(root)
        self._storage = open_storage(root)
        self._may_write = may_write
        self._whole: set[int] = set()

    def exists(self) -> bool:
        """Whether there is a sweep in the folder."""
        return self.folder.sweep_json.exists()

    def check(self) -> None:
        """Read everything.

        Raises:
            UserError: all that is damaged, or that a newer version wrote.
        """
        faults: list[Fault] = []
        readers: list[Callable[[], object]] = [self.sweep, self.trials, self.warm_start]
        if self.folder.base_json.exists():
            readers.append(self.base)
        readers += [partial(self.measurements, number) for number in self._numbers()]
        for read in readers:
            try:
                read()
            except UserError as error:
                faults += error.faults
        if faults:
            raise UserError(faults)

    def write_sweep(self, record: SweepRecord) -> None:
        """Create or replace the sweep's own record."""
        self._write(self.folder.sweep_json, record)

    def sweep(self) -> SweepRecord:
        """The sweep's own record."""
        return self._read(SweepRecord, self.folder.sweep_json, "restore it from a copy")

    def base(self) -> BaseRecord:
        """The base model's evaluation."""
        file = self.folder.base_json
        return self._read(BaseRecord, file, f"delete {file.parent} to evaluate the base anew")

    def write_trial(self, record: TrialRecord) -> None:
        """Create or replace a trial's record."""
        self._write(self.folder.trial_json(record.number), record)

    def write_warm_start(self, records: Sequence[TrialRecord]) -> None:
        """Keep what the search starts from, so that it does not change between restarts."""
        lines = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
        with self._writing():
            self._storage.write(self._name(self.folder.warm_start), lines)

    def warm_start(self) -> list[TrialRecord]:
        """Trials of other sweeps that the search started from."""
        file = self.folder.warm_start
        lines = self._storage.read_log(self._name(file)).splitlines()
        remedy = f"restore it from a copy, or delete {file} to read those sweeps again"
        return [
            read_record(TrialRecord, line, str(file), remedy, number)
            for number, line in enumerate(lines, start=1)
        ]

    def append(self, number: int, measurement: Measurement) -> None:
        """Add a measurement to a trial's history."""
        with self._writing():
            if number not in self._whole:
                self._drop_damaged_end(number)
            # Not known to be whole until all of the line is on the disk.
            self._whole.discard(number)
            self._storage.append(self._name(self.folder.metrics(number)), to_line(measurement))
            self._whole.add(number)

    def trials(self) -> list[TrialRecord]:
        """Every trial's record, by number."""
        records: list[TrialRecord] = []
        faults: list[Fault] = []
        for number in self._numbers():
            file = self.folder.trial_json(number)
            try:
                records.append(
                    self._read(
                        TrialRecord,
                        file,
                        f"restore it from a copy, or delete {file.parent} to run the trial again",
                    )
                )
            except FileNotFoundError:
                continue
            except UserError as error:
                faults += error.faults
        if faults:
            raise UserError(faults)
        return sorted(records, key=lambda record: record.number)

    def measurements(self, number: int) -> list[Measurement]:
        """A trial's measurements in order of their steps.

        A damaged end is dropped (see `metrics_file`). Where a later attempt went over a step again,
        its measurements replace the earlier ones from there on.
        """
        measurements: list[Measurement] = []
        for measurement in self._metrics_file(number).measurements:
            while measurements and measurements[-1].step >= measurement.step:
                measurements.pop()
            measurements.append(measurement)
        return measurements

    def _numbers(self) -> list[int]:
        """Of the trials that have a folder."""
        names = self._storage.children(self._name(self.folder.trials))
        return sorted(int(name) for name in names if name.isdigit())

    def _metrics_file(self, number: int) -> MetricsFile:
        file = self.folder.metrics(number)
        return read_lines(self._storage.read_log(self._name(file)), str(file))

    def _drop_damaged_end(self, number: int) -> None:
        """What a crash left of a line goes, lest it stand in the middle for ever."""
        found = self._metrics_file(number)
        if found.is_damaged:
            self._storage.write_log(self._name(self.folder.metrics(number)), found.whole)

    def _read(self, kind: type[Record], file: Path, remedy: str) -> Record:
        return read_record(kind, self._storage.read(self._name(file)), str(file), remedy)

    def _write(self, file: Path, record: Frozen) -> None:
        with self._writing():
            self._storage.write(self._name(file), record.model_dump_json(indent=2).encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._may_write()
        try:
            yield
        except OSError as error:
            raise cannot_write(self.folder.root, error) from error

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.root).as_posix()


def cannot_write(folder: Path, error: OSError | str) -> UserError:
    """What to say where a sweep's folder takes no files."""
    reason = error if isinstance(error, str) else error.strerror or str(error)
    remedy = "make room or make it writable, and type the same command again"
    return UserError([Fault("--output-dir", f"cannot write to {folder}: {reason}", remedy)])
