"""Which checkpoints of a sweep go, and which never do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import trial

from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialRecord, TrialStatus
from trainables.training.checkpoint_files import (
    BEST_EVALUATION,
    FILES,
    BestEvaluation,
    best_dir,
    checkpoint_dir,
    checkpoints,
    digest,
    newest_valid,
)
from tune.folder.disk_budget import DiskBudget

KIB = 1 << 10
GIB = 1 << 30
NEWEST = ["step_00000010"]
TWO = ["step_00000010", "step_00000005"]
ALL = [*TWO, "best"]


def write_checkpoint(attempt: Path, step: int, whole: bool = True) -> Path:
    """100 KiB and a little."""
    folder = checkpoint_dir(attempt, step)
    folder.mkdir(parents=True)
    file = folder / "training.safetensors"
    file.write_bytes(bytes([step]) * 100 * KIB)
    (folder / FILES).write_text(json.dumps({file.name: digest(file)}))
    if not whole:
        file.write_bytes(b"other")
    return folder


def write_weights(attempt: Path, step: int = 5) -> Path:
    folder = best_dir(attempt)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 100 * KIB)
    best = BestEvaluation(step=step, metric="in_domain/acc_mean", value=0.5)
    (folder / BEST_EVALUATION).write_text(best.model_dump_json())
    return folder


def attempted(
    root: Path, number: int, attempts: int = 1, status: TrialStatus = TrialStatus.RUNNING
) -> TrialRecord:
    folder = Ledger(root).folder
    folders = [str(folder.attempt(number, n + 1)) for n in range(attempts)]
    of_config = {"output_dir": folders[-1], "earlier_attempts": folders[:-1]}
    return trial(number, status=status, attempt=attempts, **of_config)


def fill(record: TrialRecord, steps: tuple[int, ...] = (5, 10)) -> None:
    """Checkpoints, best and final weights, as a worker leaves them."""
    attempt = Path(record.config.output_dir)
    for step in steps:
        write_checkpoint(attempt, step)
    write_weights(attempt)
    Path(record.config.weights_dir).mkdir()
    (Path(record.config.weights_dir) / "model.safetensors").write_bytes(b"x" * 500 * KIB)


def left(record: TrialRecord) -> list[str]:
    """What is left of a trial's checkpoints and best weights."""
    attempts = record.config.attempt_dirs
    found = [*checkpoints(attempts), *filter(Path.exists, map(best_dir, attempts))]
    assert Path(record.config.weights_dir).exists()
    return [path.name for path in found]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TrialStatus.COMPLETE, ["best"]),
        (TrialStatus.STOPPED_EARLY, []),
        (TrialStatus.DIVERGED, []),
        (TrialStatus.OUT_OF_MEMORY, ALL),
        (TrialStatus.FAILED, ALL),
        (TrialStatus.CANCELLED, ALL),
    ],
)
def test_each_ending_keeps_what_is_still_useful(
    tmp_path: Path, status: TrialStatus, expected: list[str]
) -> None:
    record = attempted(tmp_path, 0, status=status)
    fill(record)
    attempt = Path(record.config.output_dir)
    unfinished = [
        folder.with_name(f".{folder.name}.unfinished")
        for folder in (checkpoint_dir(attempt, 15), best_dir(attempt), attempt / "weights")
    ]
    for folder in unfinished:
        folder.mkdir()
    DiskBudget(Ledger(tmp_path), None).trial_ended(record)
    assert left(record) == expected
    assert not any(folder.exists() for folder in unfinished)


@pytest.mark.parametrize(
    ("cap_kib", "expected"),
    [
        (950, [ALL, ALL, ALL]),
        (850, [TWO, ALL, ALL]),
        (750, [NEWEST, ALL, ALL]),
        (450, [NEWEST, NEWEST, TWO]),
        (1, [NEWEST, NEWEST, NEWEST]),
    ],
)
def test_oldest_trials_lose_checkpoints_first(
    tmp_path: Path, cap_kib: int, expected: list[list[str]]
) -> None:
    records = [attempted(tmp_path, number) for number in range(3)]
    budget = DiskBudget(Ledger(tmp_path), cap_kib * KIB / GIB)
    for record in reversed(records):
        fill(record)
        budget.trial_started(record)
    budget.measured(records[0], Measurement(step=10, metrics={}, time=0))
    assert [left(record) for record in records] == expected


def test_only_whole_checkpoint_stays(tmp_path: Path) -> None:
    record = attempted(tmp_path, 0)
    fill(record, steps=(5,))
    write_checkpoint(Path(record.config.output_dir), 10, whole=False)
    budget = DiskBudget(Ledger(tmp_path), KIB / GIB)
    budget.trial_started(record)
    budget.measured(record, Measurement(step=10, metrics={}, time=0))
    assert newest_valid(record.config.attempt_dirs) == checkpoint_dir(
        Path(record.config.output_dir), 5
    )
