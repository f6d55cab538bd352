"""Trials in Ray's workers, as a sweep runs them: methods, neighbours, a failure, records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from small_trials import Run

    from trainables.config import TrialConfig
    from trainables.records.schema import BaseRecord, Measurement, SweepRecord, TrialRecord
    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")

# A LoRA trial whose modules PEFT refuses, and one that works.
SEARCH = (
    "search={lora: {rank: 4, alpha: 8, learning_rate: [1.0e-3], "
    "target_modules: [[lm_head], all-linear]}, full: {learning_rate: [1.0e-4, 3.0e-4]}}"
)


class Heard(SweepListener):
    """Everything that listeners are called with."""

    def __init__(self) -> None:
        self.sweeps: list[SweepRecord] = []
        self.started: list[TrialRecord] = []
        self.measurements: dict[int, list[Measurement]] = {}
        self.ended: dict[int, TrialRecord] = {}

    def sweep_started(
        self, sweep: SweepRecord, base: BaseRecord, history: Sequence[TrialRecord]
    ) -> None:
        self.sweeps.append(sweep)

    def trial_started(self, record: TrialRecord) -> None:
        self.started.append(record)

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        self.measurements.setdefault(record.number, []).append(measurement)

    def trial_ended(self, record: TrialRecord) -> None:
        self.ended[record.number] = record


class Finished:
    """A sweep that has run: its folder, its outcome, and what listeners heard."""

    def __init__(self, folder: Path, outcome: SweepOutcome, heard: Heard) -> None:
        self.ledger, self.outcome, self.heard = Ledger(folder), outcome, heard

    def records(self, method: str) -> list[TrialRecord]:
        return [record for record in self.outcome.records if record.config.method == method]

    def curve(self, record: TrialRecord, key: str = "train/loss") -> list[float]:
        return [m.metrics[key] for m in self.ledger.measurements(record.number)]


@pytest.fixture(scope="module")
def mixed(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """LoRA and full fine-tuning, two of each, two at a time: first the two of full fine-tuning."""
    folder, heard = tmp_path_factory.mktemp("sweep"), Heard()
    config = load("sampler=grid", "budget.trials=9", "resources.lora.slots=0", SEARCH)
    return Finished(folder, Sweep(config, folder, base_cache).run([heard]), heard)


def test_two_deepspeed_trials_run_side_by_side(
    mixed: Finished,
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
) -> None:
    first, second = mixed.records("full")
    assert max(first.started, second.started) < min(first.ended or 0, second.ended or 0)
    assert {first.config.learning_rate, second.config.learning_rate} == {1e-4, 3e-4}
    rate = second.config.learning_rate
    alone = run(make_trial("full", learning_rate=rate, deepspeed={"zero_stage": 2}))
    assert mixed.curve(second) == pytest.approx(alone.curve(), abs=1e-3)


def test_the_ledger_holds_what_listeners_heard(mixed: Finished) -> None:
    heard, records = mixed.heard, mixed.outcome.records
    assert [record.number for record in records] == [0, 1, 2, 3]
    assert not mixed.outcome.interrupted
    assert mixed.ledger.trials() == records == [heard.ended[number] for number in range(4)]
    assert heard.sweeps == [mixed.ledger.sweep()]
    assert sorted(record.number for record in heard.started) == [0, 1, 2, 3]
    complete = [record for record in records if record.status is TrialStatus.COMPLETE]
    assert len(complete) == 3
    for record in complete:
        on_disk = mixed.ledger.measurements(record.number)
        assert on_disk == heard.measurements[record.number]
        assert [m.step for m in on_disk] == list(range(1, 11))
        assert record.last == on_disk[-1]
        assert record.best["train/loss"] == min(m.metrics["train/loss"] for m in on_disk)
        assert Path(str(record.weights_dir)).is_dir()


def test_a_trial_in_a_worker_is_the_trial_in_this_process(
    mixed: Finished, make_trial: Callable[..., TrialConfig], run: Callable[[TrialConfig], Run]
) -> None:
    (record,) = (r for r in mixed.records("lora") if r.status is TrialStatus.COMPLETE)
    here = run(record.config.model_copy(update={"output_dir": make_trial().output_dir}))
    assert mixed.curve(record) == pytest.approx(here.curve(), abs=1e-5)
    expected = pytest.approx(here.curve("train/grad_norm"), rel=1e-4)
    assert mixed.curve(record, "train/grad_norm") == expected


def test_a_failing_trial_says_why_and_the_sweep_goes_on(mixed: Finished) -> None:
    (failed,) = (r for r in mixed.outcome.records if r.status is TrialStatus.FAILED)
    assert re.match(r"\w+Error: .*lm_head", str(failed.reason))
    assert (failed.last, failed.weights_dir) == (None, None)
    log = Path(failed.config.output_dir, "trial.log").read_text()
    assert "Traceback" in log
    assert "lm_head" in log
