"""A trial whose disk is full: nothing half-written, and it goes on once there is room."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from measured import by_step
from small_disk import fill, small_disk

from trainables.records.schema import TrialStatus
from trainables.storage.disk import is_disk_full
from trainables.training.adapter_sft import train_adapter
from trainables.training.checkpoint_files import newest_valid
from trainables.training.reporter import ListReporter
from trainables.workers.trial_outcome import verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement


TRAIN = {"steps": 6, "report_every": 3, "log_every": 1}


class Filling(ListReporter):
    """Fills the disk when it is told of a step."""

    def __init__(self, disk: Path, step: int) -> None:
        super().__init__()
        self._disk, self._step = disk, step

    def report(self, measurement: Measurement) -> None:
        super().report(measurement)
        if measurement.step == self._step:
            fill(self._disk)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64m") as folder:
        yield folder


def test_trial_fails_and_goes_on_once_there_is_room(
    make_trial: Callable[..., TrialConfig], disk: Path
) -> None:
    undisturbed = ListReporter()
    train_adapter(make_trial(train=TRAIN), undisturbed)
    first = make_trial(train=TRAIN, output_dir=str(disk / "attempt_1"))
    with pytest.raises(Exception, match="No space left") as caught:
        train_adapter(first, Filling(disk, 4))
    assert is_disk_full(caught.value)
    outcome = verdict(first, caught.value)
    assert outcome.status is TrialStatus.RUNNING
    assert outcome.reason == f"disk full: {disk}/attempt_1 has 0.0 MiB free of 64.0 MiB"
    assert not Path(first.weights_dir).exists()
    names = {path.name for path in Path(first.output_dir).rglob("*")}
    assert not {name for name in names if name.startswith(".")}
    steps = sorted(path.name for path in Path(first.output_dir, "checkpoints").iterdir())
    assert newest_valid(first.attempt_dirs) == Path(first.output_dir, "checkpoints", steps[-1])

    (disk / "filler").unlink()
    second = first.model_copy(
        update={
            "output_dir": str(disk / "attempt_2"),
            "earlier_attempts": (first.output_dir,),
        }
    )
    resumed = ListReporter()
    result = train_adapter(second, resumed)
    expected = by_step(undisturbed.measurements)
    assert by_step(resumed.measurements) == {s: expected[s] for s in range(4, 7)}
    assert Path(result.weights_dir or "", "adapter_model.safetensors").exists()
