"""One trial of a running sweep is ended by hand, and the others are as they would have been."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from measured import of_the_training

from trainables.config import TrialConfig
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialRecord, TrialStatus
from tune import stops_by_hand
from tune.folder.ask_to_stop import ask_to_stop
from tune.listeners import SweepListener
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from small_trials import Run

    from trainables.workers.packed_trials import SlotHosts
    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")

STEPS = 24
IN_SLOTS = (
    "search={lora: {rank: [4, 8], alpha: 8, learning_rate: [1.0e-3, 1.0e-4]}}",
    "budget.trials=2",
    "resources.max_concurrent=2",
    "resources.lora.slots=2",
    "resources.lora.cpus_per_worker=2",
)


class User(SweepListener):
    """Asks for the end of trial 0 as it reports its third step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        if record.number == 0 and measurement.step == 3:
            ask_to_stop(self._folder, 0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops_by_hand, "_SECONDS_BETWEEN_LOOKS", 0.0)


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    numbers = of_the_training(metrics)
    return {key: value for key, value in numbers.items() if key != "train/grad_norm"}


def test_stopped_trial_ends_soon_and_the_others_measure_the_same(
    load: Callable[..., SweepConfig],
    base_cache: Path,
    run: Callable[[TrialConfig], Run],
    tmp_path: Path,
) -> None:
    folder, processes = tmp_path / "sweep", tmp_path / "processes"
    processes.mkdir()

    def trainable(config: dict[str, Any], slot_hosts: SlotHosts | None = None) -> None:
        from trainables.workers.trainable import run_trial

        number = TrialConfig.model_validate(config["trial"]).number
        run_trial(config, slot_hosts)
        (processes / f"{number}.returned").touch()

    steps = (f"train.steps={STEPS}", f"train.report_every={STEPS // 2}", "sampler=grid")
    config = load(*IN_SLOTS, *steps, "confirm=null", "early_stopping=null")
    sweep = Sweep(config, folder, base_cache, trainable=trainable)
    stopped, *others = sweep.run([User(folder)]).records
    assert (stopped.status, stopped.reason) == (TrialStatus.CANCELLED, "ended by hand")
    assert stopped.last is not None
    assert 3 <= stopped.last.step < STEPS // 2
    assert {record.status for record in others} == {TrialStatus.COMPLETE}
    assert {record.attempt for record in (stopped, *others)} == {1}
    assert (processes / "0.returned").exists()  # so Tune may give the next trial to its process
    assert {path.parents[1].name for path in folder.rglob("checkpoints")} == {"0000"}
    assert list((folder / "stop").iterdir()) == []
    again = Sweep(config, folder, base_cache, retry_failed=True).run([]).records[0]
    assert (again.status, again.attempt) == (TrialStatus.COMPLETE, 2)
    steps_again = [m.step for m in Ledger(folder).measurements(0) if m.attempt == 2]
    assert min(steps_again) > stopped.last.step - 2  # from where it was
    beside = others[0]
    assert beside.last is not None
    alone = run(beside.config.model_copy(update={"output_dir": str(tmp_path / "alone")}))
    expected = pytest.approx(comparable(alone.last), abs=1e-4)
    assert comparable(beside.last.metrics) == expected
