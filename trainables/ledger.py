"""The ledger: what is on disk about a sweep, and the one place that knows where.

    SWEEP/
      sweep.json          configuration and provenance
      base/               the base model's evaluation (see `base_evaluation`)
      trials/0007/
        trial.json        the trial as it stands, replaced atomically
        metrics.jsonl     its measurements, appended
        attempt_1/        what the worker wrote: weights, items, log
      warm_start.jsonl    trials of other sweeps that the search started from
      results.csv  confirmed.csv  study.journal  sweep.log  wandb/     mirrors of the above

The driver alone writes records; workers write only below their own attempt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from trainables.records import BaseRecord, Measurement, SweepRecord, TrialRecord


class SweepFolder:
    """Owner of every path in a sweep's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sweep_json = root / "sweep.json"
        self.base = root / "base"
        self.base_json = self.base / "base.json"
        self.trials = root / "trials"
        self.warm_start = root / "warm_start.jsonl"
        self.results_csv = root / "results.csv"
        self.confirmed_csv = root / "confirmed.csv"
        self.study = root / "study.journal"
        self.log = root / "sweep.log"
        self.ray = root / "ray"

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
    """Reads and writes the records of one sweep."""

    def __init__(self, root: Path) -> None:
        self.folder = SweepFolder(root)

    def exists(self) -> bool:
        """Whether there is a sweep in the folder."""
        return self.folder.sweep_json.exists()

    def write_sweep(self, record: SweepRecord) -> None:
        """Create or replace the sweep's own record."""
        _write_atomically(self.folder.sweep_json, record.model_dump_json(indent=2))

    def sweep(self) -> SweepRecord:
        """The sweep's own record."""
        return SweepRecord.model_validate_json(self.folder.sweep_json.read_bytes())

    def base(self) -> BaseRecord:
        """The base model's evaluation."""
        return BaseRecord.model_validate_json(self.folder.base_json.read_bytes())

    def write_trial(self, record: TrialRecord) -> None:
        """Create or replace a trial's record."""
        _write_atomically(self.folder.trial_json(record.number), record.model_dump_json(indent=2))

    def write_warm_start(self, records: Sequence[TrialRecord]) -> None:
        """Keep what the search starts from, so that it does not change between restarts."""
        lines = "".join(record.model_dump_json() + "\n" for record in records)
        _write_atomically(self.folder.warm_start, lines)

    def warm_start(self) -> list[TrialRecord]:
        """Trials of other sweeps that the search started from."""
        if not self.folder.warm_start.exists():
            return []
        lines = self.folder.warm_start.read_bytes().splitlines()
        return [TrialRecord.model_validate_json(line) for line in lines]

    def append(self, number: int, measurement: Measurement) -> None:
        """Add a measurement to a trial's history."""
        file = self.folder.metrics(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        line = measurement.model_dump_json() + "\n"
        _drop_torn_line(file)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def trials(self) -> list[TrialRecord]:
        """Every trial's record, by number."""
        files = self.folder.trials.glob("*/trial.json")
        records = [TrialRecord.model_validate_json(file.read_bytes()) for file in files]
        return sorted(records, key=lambda record: record.number)

    def measurements(self, number: int) -> list[Measurement]:
        """A trial's measurements in order of their steps.

        A torn last line is dropped. Where a later attempt went over a step again, its
        measurements replace the earlier ones from there on.
        """
        file = self.folder.metrics(number)
        if not file.exists():
            return []
        measurements: list[Measurement] = []
        lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
        for position, line in enumerate(lines):
            try:
                measurement = Measurement.model_validate_json(line)
            except ValidationError:
                if position < len(lines) - 1:
                    raise
                break
            while measurements and measurements[-1].step >= measurement.step:
                measurements.pop()
            measurements.append(measurement)
        return measurements


def _drop_torn_line(file: Path) -> None:
    """What a crash left without a line's end goes, lest the next line be joined to it."""
    if not file.exists() or not (content := file.read_bytes()) or content.endswith(b"\n"):
        return
    os.truncate(file, content.rfind(b"\n") + 1)


def _write_atomically(file: Path, text: str) -> None:
    """All of the text or none of it is found under the name, even after a crash."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)
