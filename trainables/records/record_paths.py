"""The paths in a sweep's folder; `ledger` says what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from trainables.records.schema import BASE_ITEMS, BASE_RECORD, TrialRecord
from trainables.storage.locations import node_cache
from trainables.storage.storage import Location


class SweepFolder:
    """Every path in a sweep's folder.

    For a sweep in an object store, paths are those of the driver's working folder, where the
    mirrors are made; everything else is in the store under the same names.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.is_in_store = isinstance(location, str)
        self.root = root = location if isinstance(location, Path) else _working_folder(location)
        self.sweep_json = root / "sweep.json"
        self.lock = root / "lock.json"
        self.base = root / "base"
        self.base_json = self.base / BASE_RECORD
        self.base_items = self.base / BASE_ITEMS
        self.trials = root / "trials"
        self.stop = root / "stop"
        self.warm_start = root / "warm_start.jsonl"
        self.results_csv = root / "results.csv"
        self.confirmed_csv = root / "confirmed.csv"
        self.study = root / "study.journal"
        self.log = root / "sweep.log"
        self.ray = root / "ray"

    @property
    def mirrors(self) -> tuple[Path, ...]:
        """Files that the driver makes from the records."""
        return (self.results_csv, self.confirmed_csv, self.study, self.log)

    def name(self, path: Path) -> str:
        """The storage's name for a path."""
        return "" if path == self.root else path.relative_to(self.root).as_posix()

    def place(self, path: Path) -> str:
        """A path for messages: on a disk, or its address in the object store."""
        return self.absolute(path) if self.is_in_store else str(path)

    def absolute(self, path: Path) -> str:
        """A path for workers, which may run in another folder."""
        return f"{self.location}/{self.name(path)}" if self.is_in_store else str(path.absolute())

    def lock_after(self, token: str) -> Path:
        """The lock of the driver that took over from the one with this token."""
        return self.root / f"lock.{token}.json"

    def heartbeat(self, token: str) -> Path:
        """The heartbeat of the driver with this token."""
        return self.root / f"lock.{token}.heartbeat.json"

    def trial(self, number: int) -> Path:
        """Folder of one trial."""
        return self.trials / f"{number:04d}"

    def trial_json(self, number: int) -> Path:
        """The trial's record."""
        return self.trial(number) / "trial.json"

    def metrics(self, number: int) -> Path:
        """The trial's measurements."""
        return self.trial(number) / "metrics.jsonl"

    def strengths(self, number: int) -> Path:
        """The trial's measurements at other strengths, and repaired."""
        return self.trial(number) / "strengths.jsonl"

    def stop_request(self, number: int) -> Path:
        """File that asks the driver to end one trial."""
        return self.stop / f"{number:04d}"

    def attempt(self, number: int, attempt: int) -> Path:
        """Where the workers of one attempt write."""
        return self.trial(number) / f"attempt_{attempt}"

    def attempts(self, record: TrialRecord) -> list[Path]:
        """Folders of a trial's attempts."""
        return [self.attempt(record.number, n) for n in range(1, record.attempt + 1)]


def trial_numbers(names: Iterable[str]) -> set[int]:
    """The trial numbers among the names of files and folders."""
    return {int(name) for name in names if name.isascii() and name.isdecimal()}


def _working_folder(address: str) -> Path:
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return node_cache() / "sweeps" / f"{address.rpartition('/')[2]}-{digest}"
