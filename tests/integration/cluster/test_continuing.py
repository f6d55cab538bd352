"""The same command again, with something changed: what runs, and what is refused."""

from __future__ import annotations

import csv
import logging
import os
import signal
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import fake_sweep
import pytest
import ray.tune
from conftest import SMALL
from ray import cloudpickle

from analysis.sweeps import open_sweeps
from trainables.config import TrialConfig
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Outcome, SweepRecord, TrialRecord, TrialStatus
from trainables.storage.locations import resolve
from trainables.workers.reporters import OUTCOME
from trainables.workers.stop_request import StopRequest
from tune.cli import main
from tune.listeners import SweepListener
from tune.resources.placement import beside_driver
from tune.search.study import Study
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")
cloudpickle.register_pickle_by_value(fake_sweep)

LORA = "search.full=null"
THREE = ("budget.trials=3", "sampler=random", LORA)


class CtrlC(SweepListener):
    """Presses it once a trial waits for room: a running sweep takes it for its own."""

    def sweep_started(self, *of_it: Any) -> None:
        Thread(target=self._press, daemon=True).start()

    def _press(self) -> None:
        while not any(g["state"] == "PENDING" for g in ray.util.placement_group_table().values()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def start(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> Callable[..., tuple[list[int], list[TrialRecord]]]:
    """One start of the command on the same folder: which trials ran, and all records."""

    def start(
        *overrides: str, retry_failed: bool = False, broken: dict[int, TrialStatus] | None = None
    ) -> tuple[list[int], list[TrialRecord]]:
        def trial(config: dict[str, Any]) -> None:
            number = TrialConfig.model_validate(config["trial"]).number
            if broken and number in broken:
                outcome = Outcome(status=broken[number], reason="broken")
                ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})
            else:
                fake_sweep.fake_trial(config)

        sweep = Sweep(load(*overrides), tmp_path / "sweep", base_cache, retry_failed, trial)
        started = fake_sweep.Started()
        return started.numbers, sweep.run([started]).records

    return start


def test_ctrl_c_as_the_first_trial_is_drawn_ends_like_any_other(
    load: Callable[..., SweepConfig],
    base_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = Study.ask

    def press_and_ask(study: Study, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # until the sweep's thread has heard of it
        return ask(study, *arguments)

    monkeypatch.setattr(Study, "ask", press_and_ask)
    trial = fake_sweep.fake_trial
    outcome = Sweep(load(*THREE), tmp_path / "sweep", base_cache, trainable=trial).run([])
    assert outcome.interrupted
    assert outcome.records == []
    assert (tmp_path / "sweep" / "study.journal").exists()


@pytest.mark.parametrize(
    "stopping",
    [pytest.param("early_stopping=null", marks=pytest.mark.slow), "early_stopping={}"],
)
def test_what_waits_for_room_is_left_to_the_next_start(
    start: Callable[..., Any],
    load: Callable[..., SweepConfig],
    base_cache: Path,
    tmp_path: Path,
    stopping: str,
) -> None:
    start("budget.trials=1", "sampler=random", LORA)  # the base's evaluation takes room as well
    neighbour = ray.util.placement_group([{"CPU": 2}])  # holds all there is
    assert neighbour.wait(30)
    folder, trial = tmp_path / "sweep", fake_sweep.fake_trial
    sweep = Sweep(load(*THREE, stopping), folder, base_cache, trainable=trial)
    outcome = sweep.run([CtrlC()])
    assert outcome.interrupted
    assert [record.number for record in outcome.records] == [0]
    ray.util.remove_placement_group(neighbour)
    ran, records = start(*THREE)
    assert sorted(ran) == [1, 2]
    assert [record.status for record in records] == [TrialStatus.COMPLETE] * 3


@pytest.mark.slow
def test_ray_does_not_complain_of_a_sweep_that_went_well(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    of_ray = logging.getLogger("ray")  # it hands nothing on to the root
    of_ray.addHandler(caplog.handler)
    try:
        _, records = start(*THREE)
    finally:
        of_ray.removeHandler(caplog.handler)
    assert [record.status for record in records] == [TrialStatus.COMPLETE] * 3
    assert "Failed" not in caplog.text


class Told(SweepListener):
    """What the user was told beside the trials."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def preparing(self, message: str) -> None:
        self.lines.append(message)

    def sweep_started(self, sweep: SweepRecord, base: BaseRecord, history: object) -> None:
        self.lines += [f"warning: {line}" for line in sweep.provenance.warnings_with(base)]


@pytest.mark.slow
def test_what_a_wider_search_asks_of_the_base_is_checked_before_its_trials_run(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> None:
    def start(*overrides: str) -> Told:
        told, trial = Told(), fake_sweep.fake_trial
        config = load(*THREE, *overrides)
        Sweep(config, tmp_path / "sweep", base_cache, trainable=trial).run([told])
        return told

    modules = "search.lora.target_modules=[all-linear, [q_proj], {}]"
    wider = modules.format("[q_proj, v_proj]")
    checked = "checking the base package://trainables/embedded/model against what"
    start("budget.trials=1")
    for overrides, is_checked in (((), False), ((wider,), True), ((wider,), False)):
        lines = start("budget.trials=1", *overrides).lines
        assert any(line.startswith(checked) for line in lines) == is_checked
    with pytest.raises(UserError) as caught:
        start(modules.format("[q_proj, v_porj]"))
    (fault,) = caught.value.faults
    assert fault.field == "search.lora.target_modules"
    assert fault.rule == "the model has no v_porj"
    assert len(Ledger(tmp_path / "sweep").trials()) == 1


@pytest.mark.slow
def test_warnings_are_told_before_and_after_the_trials(
    load: Callable[..., SweepConfig],
    base_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tune.sweep.warning_of_driver", lambda: "this node may go")
    text = tmp_path / "general.txt"
    text.write_text("max 1 2 = 2")
    few = ("data.limit=20", "train.batch_size=24", f"eval.general_text={text}")
    config, trial, told = load(*THREE, *few, "inspect=true"), fake_sweep.fake_trial, Told()
    monkeypatch.setattr(told, "trial_started", lambda record: text.write_text("max 1 3 = 3"))
    Sweep(config, tmp_path / "sweep", base_cache, trainable=trial).run([told])
    assert told.lines[0] == "warning: this node may go"
    assert told.lines[1].startswith("evaluating the base")
    of_batch = "warning: train.batch_size is 24, and there is no more to train on than 20 samples: "
    assert any(line.startswith(of_batch) for line in told.lines)
    ledger = Ledger(tmp_path / "sweep")
    recorded = ledger.sweep().provenance.warnings
    assert [f"warning: {line}".startswith(of_batch) for line in recorded] == [True, False]
    assert recorded[-1].startswith("eval.general_text changed while trials ran: ")
    assert f"warning: {recorded[-1]}" in told.lines
    assert not any("train.batch_size" in line for line in ledger.base().warnings)  # others share it
    assert any(line.startswith("looking inside trial") for line in told.lines)
    assert told.lines[-1].startswith("warning: cannot look inside trial ")  # it has no weights


@pytest.mark.slow
def test_what_a_warm_start_takes_and_leaves_out_is_told(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> None:
    trial, told, earlier = fake_sweep.fake_trial, Told(), tmp_path / "earlier"
    lora = "search.lora={rank: [2, 4], alpha_ratio: 2, learning_rate: [1.0e-4]}"
    two = ("budget.trials=2", "sampler=random", LORA, lora)
    Sweep(load(*two), earlier, base_cache, trainable=trial).run([])
    config = load(*two, "seed=1", "search.lora.rank=[2]", f"warm_start=[{earlier}]")
    Sweep(config, tmp_path / "later", base_cache, trainable=trial).run([told])
    taken, left_out = [line for line in told.lines if line.startswith("warm_start: ")]
    assert taken == "warm_start: took 1 trial(s)"
    assert left_out == f"warm_start: left out 1 of {earlier}: has rank 4, which is not in 2"


def test_a_request_to_stop_that_comes_as_the_sweep_ends_is_no_error() -> None:
    """It comes from a thread, whose traceback the user would see after a Ctrl-C."""
    with StopRequest(beside_driver()) as request:
        pass
    request.make()


def test_failed_trials_alone_are_run_again_on_request(start: Callable[..., Any]) -> None:
    five = (*THREE, "budget.trials=5")
    broken = {1: TrialStatus.FAILED, 2: TrialStatus.OUT_OF_MEMORY, 3: TrialStatus.CANCELLED}
    ran, before = start(*five, broken=broken)
    assert sorted(ran) == [0, 1, 2, 3, 4]
    assert {r.number: r.status for r in before if r.status is not TrialStatus.COMPLETE} == broken
    ran, records = start(*five)
    assert (ran, records) == ([], before)
    ran, records = start(*five, retry_failed=True)
    assert sorted(ran) == [1, 2, 3]
    for number in broken:
        assert records[number].status is TrialStatus.COMPLETE
        assert (records[number].attempt, records[number].reason) == (2, None)
        assert records[number].params == before[number].params
    assert [records[0], records[4]] == [before[0], before[4]]


def test_trials_that_all_fail_alike_end_the_sweep_with_code_1(
    monkeypatch: pytest.MonkeyPatch,
    base_cache: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken(config: dict[str, Any]) -> None:
        number = TrialConfig.model_validate(config["trial"]).number
        outcome = Outcome(status=TrialStatus.FAILED, reason=f"no file of process {number}")
        ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})

    monkeypatch.setattr("tune.sweep.Sweep", partial(Sweep, trainable=broken))
    (tmp_path / ".base").symlink_to(base_cache)
    settings = [*SMALL, LORA, "wandb.mode=disabled"]
    command = ["quickstart", "--num-trials", "20", "--output-dir", str(tmp_path)]
    assert main([*command, *(word for setting in settings for word in ("--set", setting))]) == 1
    records = Ledger(tmp_path / "quickstart").trials()
    assert {record.status for record in records} == {TrialStatus.FAILED}
    assert 5 <= len(records) < 20
    output = capfd.readouterr().out
    assert "--retry-failed --num-trials 20" in output
    assert "# the last trials failed alike" in output
    assert "no file of process" in output


@pytest.mark.slow
def test_what_a_mended_search_leaves_outside_is_told_to_who_reads_the_sweep(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    broken = dict.fromkeys((0, 1), TrialStatus.FAILED)
    start(*THREE, "search.lora.rank=[3]", "budget.trials=2", broken=broken)
    ran, records = start(*THREE, "search.lora.rank=[4]", "budget.trials=2")
    assert (sorted(ran), len(records)) == ([2, 3], 4)
    assert Ledger(tmp_path / "sweep").sweep().outside == (0, 1)
    (sweep,) = open_sweeps(tmp_path / "sweep")
    assert sweep.unfinished is None


def test_a_finished_sweep_is_extended_and_its_search_widened(start: Callable[..., Any]) -> None:
    _, before = start(*THREE)
    wider = (*THREE, "search.lora.rank=[1, 2, 4, 8, 16, 32, 64]", "budget.trials=5")
    ran, records = start(*wider)
    assert sorted(ran) == [3, 4]
    assert [r.config for r in records[:3]] == [r.config for r in before]


def test_a_search_or_a_model_that_old_trials_do_not_fit_is_refused(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    start(*THREE)
    ledger = Ledger(tmp_path / "sweep")
    before = (ledger.sweep(), ledger.trials())
    for change, told in {
        "search.lora.rank=[512]": "trial 0 of this sweep has rank",
        "data.limit=7": "data.limit",
    }.items():
        with pytest.raises(UserError) as caught:
            start(*THREE, change)
        assert told in str(caught.value)
    assert (ledger.sweep(), ledger.trials()) == before


class Edits(SweepListener):
    """Adds an empty line to a file while the base is measured."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def preparing(self, message: str) -> None:
        with self._file.open("a") as file:
            file.write("\n")


def test_a_file_that_was_edited_while_the_base_was_measured_is_told(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> None:
    """Nobody knows which of the two the base has read."""
    data = tmp_path / "rows.jsonl"
    data.write_bytes(Path(resolve(load().data.path)).read_bytes())
    config, folder = load(*THREE, f"data.path={data}", "budget.trials=1"), tmp_path / "sweep"
    Sweep(config, folder, base_cache, trainable=fake_sweep.fake_trial).run([Edits(data)])
    with pytest.raises(UserError, match=r"data\.path: has changed"):
        Sweep(config, folder, base_cache)


def test_a_trial_that_was_being_stopped_when_the_driver_died_ends_when_it_last_trained(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    halving = "early_stopping={metrics: {train/loss: -1}, reduction_factor: 2, first_rung: 0.5}"
    five = ("budget.trials=5", "sampler=random", LORA, "resources.max_concurrent=1", halving)
    _, records = start(*five)
    stopped = next(r for r in records if r.status is TrialStatus.STOPPED_EARLY)
    assert stopped.last is not None
    assert f"at step {stopped.last.step}" in (stopped.reason or "")
    ledger = Ledger(tmp_path / "sweep")
    assert ledger.measurements(stopped.number)[-1] == stopped.last
    unwritten = {"status": TrialStatus.RUNNING, "reason": None, "ended": None, "last": None}
    ledger.write_trial(stopped.model_copy(update=unwritten))
    ran, again = start(*five)
    assert ran == []
    when = {"ended": stopped.last.time}
    assert again[stopped.number] == stopped.model_copy(update=when)


def test_the_winner_is_confirmed_once_with_other_seeds(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    confirm = (*THREE, "confirm={top_k: 1, seeds: 2}")
    ran, records = start(*confirm)
    assert sorted(ran[:3]) == [0, 1, 2]
    confirming = [record for record in records if record.confirms is not None]
    assert [record.number for record in confirming] == [3, 4]
    (winner,) = {record.confirms for record in confirming}
    assert {r.config.seed - records[winner].config.seed for r in confirming} == {1, 2}
    assert all(record.params == records[winner].params for record in confirming)
    with (tmp_path / "sweep" / "confirmed.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["in_domain/acc_mean"]["number"] == str(winner)
    assert rows["in_domain/acc_mean"]["runs"] == "2"
    assert start(*confirm) == ([], records)
