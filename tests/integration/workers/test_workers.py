"""Trials in Ray's workers, as a sweep runs them: groups, neighbours, failures, records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faults import faults

from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome
from tune.tune_events import TuneEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conftest import Run

    from trainables.config import TrialConfig
    from trainables.records.schema import BaseRecord, Measurement, SweepRecord, TrialRecord
    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")

RATES = (1e-4, 3e-4)
FULL = "search={full: {learning_rate: [1.0e-4, 3.0e-4]}}"
LORA_AND_FULL = (
    "search={lora: {rank: [2, 4], alpha_ratio: 2, learning_rate: [1.0e-3]}, "
    "full: {learning_rate: [1.0e-4, 3.0e-4]}}"
)
ONE_BAD_CHOICE = (
    "search={lora: {rank: 4, alpha: 8, learning_rate: [1.0e-3], "
    "target_modules: [[lm_head], all-linear, [q_proj]]}}"
)


class Heard(SweepListener):
    """Everything that listeners are told, and the process that each result came from."""

    def __init__(self) -> None:
        self.sweeps: list[SweepRecord] = []
        self.started: list[TrialRecord] = []
        self.measurements: dict[int, list[Measurement]] = {}
        self.ended: dict[int, TrialRecord] = {}
        self.processes: dict[int, set[int]] = {}

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
    """A sweep that has run: its folder, its outcome, and what was heard."""

    def __init__(self, folder: Path, outcome: SweepOutcome, heard: Heard) -> None:
        self.ledger, self.outcome, self.heard = Ledger(folder), outcome, heard

    def curve(self, record: TrialRecord, key: str = "train/loss") -> list[float]:
        return [m.metrics[key] for m in self.ledger.measurements(record.number)]


@pytest.fixture(scope="module")
def run_sweep(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Finished]:
    def run_sweep(*overrides: str) -> Finished:
        folder = tmp_path_factory.mktemp("sweep")
        config = load("sampler=grid", "budget.trials=9", *overrides)
        heard = Heard()

        def on_trial_result(self: Any, *arguments: Any, **options: Any) -> None:
            result = options["result"]
            number = options["trial"].config["trial"]["number"]
            heard.processes.setdefault(number, set()).add(result["pid"])
            original(self, *arguments, **options)

        original = TuneEvents.on_trial_result
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TuneEvents, "on_trial_result", on_trial_result)
            outcome = Sweep(config, folder, base_cache).run([heard])
        return Finished(folder, outcome, heard)

    return run_sweep


@pytest.fixture(scope="module")
def mixed(run_sweep: Callable[..., Finished]) -> Finished:
    """LoRA and full fine-tuning, two of each, two at a time: first the two of full fine-tuning."""
    return run_sweep(LORA_AND_FULL)


def test_modules_that_the_model_has_not_are_told_before_any_trial(
    run_sweep: Callable[..., Finished],
) -> None:
    (fault,) = faults(run_sweep, ONE_BAD_CHOICE.replace("lm_head", "nothing_like_this"))
    assert fault.field == "search.lora.target_modules"
    assert "nothing_like_this" in fault.rule


@pytest.fixture(scope="module")
def failing(run_sweep: Callable[..., Finished]) -> Finished:
    """Three trials one after another, of which one cannot work."""
    return run_sweep(ONE_BAD_CHOICE, "resources.max_concurrent=1", "seed=4")


@pytest.fixture(scope="module")
def alone(make_trial: Callable[..., TrialConfig], run: Callable[[TrialConfig], Run]) -> Any:
    """Full fine-tuning in this process, the whole batch at once."""
    done: dict[float, tuple[TrialConfig, Run]] = {}

    def alone(rate: float) -> tuple[TrialConfig, Run]:
        if rate not in done:
            trial = make_trial("full", learning_rate=rate, deepspeed={"zero_stage": 2})
            done[rate] = trial, run(trial)
        return done[rate]

    return alone


def test_two_deepspeed_trials_run_side_by_side(mixed: Finished, alone: Any) -> None:
    first, second, *_ = mixed.outcome.records
    assert {first.config.method, second.config.method} == {"full"}
    assert max(first.started, second.started) < min(first.ended or 0, second.ended or 0)
    assert mixed.heard.processes[0].isdisjoint(mixed.heard.processes[1])
    assert sorted(r.config.learning_rate for r in (first, second)) == list(RATES)
    for record in (first, second):
        _, expected = alone(record.config.learning_rate)
        assert mixed.curve(record) == pytest.approx(expected.curve(), abs=1e-3)


def test_a_mixed_sweep_completes_every_trial(mixed: Finished) -> None:
    records = mixed.outcome.records
    assert [r.number for r in records] == [0, 1, 2, 3]
    assert {(r.status, r.reason) for r in records} == {(TrialStatus.COMPLETE, None)}
    assert sorted(r.config.method for r in records) == ["full", "full", "lora", "lora"]
    assert not mixed.outcome.interrupted
    points = {(r.config.method, r.config.learning_rate, str(r.config.lora)) for r in records}
    assert len(points) == 4
    for record in records:
        assert record.weights_dir is not None
        assert Path(record.weights_dir).is_dir()


def test_the_disk_holds_what_listeners_heard(mixed: Finished) -> None:
    heard = mixed.heard
    assert mixed.ledger.trials() == mixed.outcome.records
    assert [heard.ended[number] for number in range(4)] == mixed.outcome.records
    assert heard.sweeps == [mixed.ledger.sweep()]
    assert sorted(record.number for record in heard.started) == [0, 1, 2, 3]
    for record in mixed.outcome.records:
        on_disk = mixed.ledger.measurements(record.number)
        assert on_disk == heard.measurements[record.number]
        assert [m.step for m in on_disk] == list(range(1, 11))
        assert record.last == on_disk[-1]
        assert record.best["train/loss"] == min(m.metrics["train/loss"] for m in on_disk)


def test_a_trial_in_a_worker_is_the_trial_in_this_process(
    mixed: Finished, make_trial: Callable[..., TrialConfig], run: Callable[[TrialConfig], Run]
) -> None:
    (record,) = (r for r in mixed.outcome.records if r.config.lora and r.config.lora.rank == 4)
    here = run(record.config.model_copy(update={"output_dir": make_trial().output_dir}))
    assert mixed.curve(record) == pytest.approx(here.curve(), abs=1e-5)
    assert mixed.curve(record, "train/grad_norm") == pytest.approx(
        here.curve("train/grad_norm"), rel=1e-4
    )


def test_a_failing_trial_tells_why_and_the_sweep_goes_on(failing: Finished) -> None:
    records = failing.outcome.records
    assert len(records) == 3
    assert [r.number for r in records if r.status is TrialStatus.COMPLETE] == [1, 2]
    failed = records[0]
    assert failed.status is TrialStatus.FAILED
    assert failed.reason is not None
    assert re.match(r"\w+Error: .*lm_head", failed.reason)
    assert failed.last is None
    assert failed.weights_dir is None
    log = Path(failed.config.output_dir, "trial.log").read_text()
    assert "Traceback" in log
    assert "lm_head" in log
    assert failing.ledger.trials() == records


def test_trials_follow_each_other_in_one_process(failing: Finished) -> None:
    processes = {pid for pids in failing.heard.processes.values() for pid in pids}
    assert len(processes) == 1
    assert sorted(failing.heard.processes) == [0, 1, 2]


def test_an_objective_that_no_task_gives_is_refused_before_any_trial(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> None:
    config = load("objectives=[{metric: in_domain/target_relay/f1, mode: max}]")
    heard = Heard()
    folder = tmp_path / "sweep"
    with pytest.raises(UserError, match="nothing logs in_domain/target_relay/f1") as caught:
        Sweep(config, folder, base_cache).run([heard])
    assert caught.value.faults[0].field == "objectives.0.metric"
    assert "in_domain/target_relay/acc" in caught.value.faults[0].remedy
    assert not Ledger(folder).exists()
    assert Ledger(folder).trials() == []
    assert (heard.sweeps, heard.started) == ([], [])


def test_more_workers_than_there_are_cores_are_refused(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> None:
    config = load(FULL, "resources.full.workers=4", "train.micro_batch_size=2")
    with pytest.raises(UserError, match="asks for 4 CPUs"):
        Sweep(config, tmp_path / "sweep", base_cache).run([])


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Each sweep gives its cores back."""
    yield
    import time

    import ray

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline, "a trial still holds a core"
        time.sleep(0.1)
