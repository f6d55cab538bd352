"""The W&B mirror against real offline runs, read back with `wandb leet inspect`."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builders
import psutil
import pytest
import wandb
from builders import SWEEP_ID, running, sweep_config
from wandb.util import get_core_path

from trainables.config import DeepSpeedConfig, LoraConfig, ModelConfig, TrainConfig
from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Measurement, SweepRecord, TrialRecord, TrialStatus
from tune.config.sweep_config import WandbConfig
from tune.tracking import wandb_runs
from tune.tracking.wandb_fields import trial_name
from tune.tracking.wandb_listener import WandbListener
from tune.tracking.wandb_parts import mend, parts_of, set_aside, steps_in

WANDB = str(Path(sys.executable).with_name("wandb"))
FAKE_KEY = "f00d" * 10
OFFLINE = WandbConfig(mode="offline", project="tests", tags=("a", "b"))
MODEL = ModelConfig(name="tiny-model", dtype="float32", attention="eager")


@pytest.fixture(autouse=True)
def _fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings and no service left over from elsewhere."""
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sweeps" / "quickstart"


def sweep_record() -> SweepRecord:
    record = builders.sweep_record(sweep_config(model=MODEL))
    warned = record.provenance.model_copy(update={"warnings": ("a large batch",)})
    return record.model_copy(update={"provenance": warned})


def base_record() -> BaseRecord:
    return builders.base_record(
        metrics={"in_domain/acc_mean": 0.25, "ood/piqa/acc": 0.5123456789},
        general_nll=3.25,
        parameters=134_515_008,
        warnings=("at chance",),
    )


def trial(number: int = 7, *, full: bool = False, **fields: Any) -> TrialRecord:
    return running(
        number,
        seed=11,
        method="full" if full else "lora",
        learning_rate=3e-4,
        lora=None if full else LoraConfig(rank=4, alpha=16, rslora=True),
        deepspeed=DeepSpeedConfig(zero_stage=3) if full else None,
        model=MODEL,
        train=TrainConfig(batch_size=8),
        params={"lora/rank": 4, "lora/learning_rate": 3e-4},
        **fields,
    )


def measurement(step: int, offset: float = 0.0) -> Measurement:
    metrics = {
        "train/loss": 2.0 / step + offset,
        "train/global_step": float(step),
        "forgetting/mean": 0.1 * step + offset,
        "forgetting/arc.easy": 1 / 3 + offset,
        "ood/acc_mean": 0.5 - 0.01 * step + offset,
    }
    return Measurement(step=step, metrics=metrics, time=0)


def listener_of(
    folder: Path,
    config: WandbConfig = OFFLINE,
    tell: Callable[[str], None] = lambda message: None,
) -> WandbListener:
    listener = WandbListener(config, folder, tell)
    listener.sweep_started(sweep_record(), base_record(), [])
    return listener


def run_trial(
    listener: WandbListener, record: TrialRecord, status: TrialStatus, reason: str | None = None
) -> None:
    listener.trial_started(record)
    listener.measured(record, measurement(1))
    listener.trial_ended(record.model_copy(update={"status": status, "reason": reason}))


class LoggedRun:
    """One `.wandb` file, as W&B's own reader prints it."""

    def __init__(self, file: Path) -> None:
        command = [WANDB, "leet", "inspect", "--json", str(file)]
        environment = {**os.environ, "WANDB_MODE": "offline"}
        lines = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout
        self._records: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
        self.run = self._of("run")[0]
        self.exit_codes = [record.get("exit_code", 0) for record in self._of("exit")]
        self.points = [
            {key: value for key, value in record["item"].items() if not key.startswith("_")}
            for record in self._of("history")
        ]
        self.wandb_steps = [record["item"]["_step"] for record in self._of("history")]
        self.times = [record["item"]["_timestamp"] for record in self._of("history")]
        self.config = self._merged("config", self.run["config"]["update"])
        self.summary = self._merged("summary", {})

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self._records if record["type"] == kind]

    def _merged(self, kind: str, start: dict[str, Any]) -> dict[str, Any]:
        merged = dict(start)
        for record in self._of(kind):
            merged.update(record.get("update", {}))
        return merged

    def metric_definitions(self) -> list[dict[str, Any]]:
        return self._of("metric")


def logged(folder: Path, *run_ids: str) -> list[LoggedRun]:
    """Every file of these runs, oldest first; read side by side, as the reader starts slowly."""
    files = [
        f for run_id in run_ids for f in folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    ]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(LoggedRun, sorted(files, key=lambda file: file.stat().st_mtime_ns)))


def logged_trials(folder: Path, *numbers: int) -> dict[int, LoggedRun]:
    """The runs of these trials, each of which must have one file."""
    runs = logged(folder, *(f"{SWEEP_ID}-{number:04d}" for number in numbers))
    assert sorted(run.config["trial/number"] for run in runs) == sorted(numbers)
    return {run.config["trial/number"]: run for run in runs}


def logged_once(folder: Path, number: int = 7) -> LoggedRun:
    return logged_trials(folder, number)[number]


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def points_of(measurements: list[Measurement]) -> list[dict[str, float]]:
    return [m.metrics for m in measurements]


def test_two_open_runs_hold_each_its_own_values(folder: Path) -> None:
    listener = listener_of(folder)
    first, second = trial(7), trial(8)
    curves = {7: [measurement(s) for s in (1, 5, 9)], 8: [measurement(s, 0.7) for s in (1, 5, 9)]}
    listener.trial_started(first)
    listener.trial_started(second)
    for point, other in zip(curves[7], curves[8], strict=True):
        listener.measured(first, point)
        listener.measured(second, other)
    for record in (first, second):
        last = curves[record.number][-1]
        best = {"forgetting/mean": 0.1 + record.number}
        listener.trial_ended(
            record.model_copy(update={"status": TrialStatus.COMPLETE, "last": last, "best": best})
        )
    listener.sweep_ended([first, second])

    runs = logged_trials(folder, *curves)
    for number, curve in curves.items():
        run = runs[number]
        assert run.points == points_of(curve)
        assert run.wandb_steps == [1, 5, 9]
        assert curve[-1].metrics.items() <= run.summary.items()
        assert run.summary["best/forgetting/mean"] == 0.1 + number
        assert run.summary["status"] == "COMPLETE"
        assert run.summary["reason"] is None
        assert run.exit_codes == [0]
        definition = {d.get("glob_name"): d.get("step_metric") for d in run.metric_definitions()}
        assert definition["*"] == "train/global_step"


def test_a_lora_run_tells_what_was_trained(folder: Path) -> None:
    run_trial(listener_of(folder), trial(7), TrialStatus.STOPPED_EARLY)
    logged_run = logged_once(folder)
    assert logged_run.exit_codes == [0]
    run = logged_run.run
    assert run["run_id"] == f"{SWEEP_ID}-0007"
    assert run["display_name"] == "lora r=4 alpha=16 lr=3e-4 #7"
    assert run["run_group"] == SWEEP_ID
    assert run["job_type"] == "lora"
    assert run["tags"] == ["a", "b"]
    assert run["project"] == "tests"
    expected = {
        "method": "lora",
        "lora/rank": 4,
        "lora/alpha": 16,
        "lora/scaling": 8.0,  # 16 / sqrt(4)
        "lora/target_modules": "all-linear",
        "train/learning_rate": 3e-4,
        "train/batch_size": 8,
        "model/name": "tiny-model",
        "model/dtype": "float32",
        "setting/group": "rank 4, stopped early",
        "trial/number": 7,
        "trial/attempt": 1,
        "seed": 11,
        "search/lora/rank": 4,
    }
    assert expected.items() <= logged_run.config.items()
    assert not [key for key in logged_run.config if key.startswith("deepspeed/")]


def test_a_full_run_has_no_adapter(folder: Path) -> None:
    run_trial(listener_of(folder), trial(3, full=True), TrialStatus.OUT_OF_MEMORY)
    run = logged_once(folder, 3)
    assert run.exit_codes == [1]
    assert run.run["display_name"] == "full lr=3e-4 #3"
    assert run.run["job_type"] == "full"
    assert run.config["deepspeed/zero_stage"] == 3
    assert not [key for key in run.config if key.startswith("lora/")]


@pytest.mark.parametrize(
    ("rate", "text"), [(1e-5, "1e-5"), (3.1623e-4, "3.16e-4"), (0.02, "2e-2"), (1.0, "1e0")]
)
def test_a_name_shows_the_rate_as_people_write_it(rate: float, text: str) -> None:
    config = trial(0, full=True).config.model_copy(update={"learning_rate": rate})
    assert trial_name(config) == f"full lr={text} #0"


def test_each_ending_has_its_exit_code_and_reason(folder: Path) -> None:
    codes = {
        TrialStatus.COMPLETE: 0,
        TrialStatus.DIVERGED: 1,
        TrialStatus.FAILED: 1,
        TrialStatus.CANCELLED: 130,
    }
    listener = listener_of(folder)
    for number, status in enumerate(codes):
        run_trial(listener, trial(number), status, reason=f"why {number}")
    runs = logged_trials(folder, *range(len(codes)))
    for number, (status, code) in enumerate(codes.items()):
        run = runs[number]
        assert run.exit_codes == [code], status
        assert (run.summary["status"], run.summary["reason"]) == (status.value, f"why {number}")


def test_the_base_is_a_run_of_its_own_and_logged_once(folder: Path) -> None:
    for _ in range(2):
        listener_of(folder).sweep_ended([])
    [run] = logged(folder, f"{SWEEP_ID}-base")
    base = base_record()
    assert run.run["job_type"] == "base"
    assert run.run["run_group"] == SWEEP_ID
    assert run.points == [{**base.metrics, "train/global_step": 0}]
    assert run.wandb_steps == [0]
    assert base.metrics.items() <= run.summary.items()
    assert run.summary["base/parameters"] == base.parameters
    assert run.summary["base/general_nll"] == 3.25
    assert run.summary["base/warnings"] == "at chance\na large batch"
    assert run.config["model/name"] == "tiny-model"
    assert run.config["model/parameters"] == base.parameters
    assert run.config["setting/group"] == "base"
    assert run.exit_codes == [0]


def test_an_interrupted_trial_goes_on_under_its_id_without_repeating_steps(folder: Path) -> None:
    started = time.time() + 60  # by a clock that is ahead of this machine's
    ledger, listener, record = Ledger(folder), listener_of(folder), trial(7, started=started)
    listener.trial_started(record)
    for step in (2, 4):
        ledger.append(7, measurement(step))
        listener.measured(record, measurement(step))
    listener.sweep_ended([record])
    wandb.teardown()

    again, record = listener_of(folder), trial(7, attempt=2, started=started)
    again.trial_started(record)
    for step in (2, 4, 6):
        again.measured(record, measurement(step))
    last = measurement(6)
    again.trial_ended(record.model_copy(update={"status": TrialStatus.COMPLETE, "last": last}))

    first, second = logged(folder, f"{SWEEP_ID}-0007")
    assert first.run["run_id"] == second.run["run_id"]
    assert second.run["resume"] is True
    assert first.points == points_of([measurement(2), measurement(4)])
    assert second.points == points_of([measurement(6)])
    assert (first.exit_codes, first.summary["status"]) == ([130], "INTERRUPTED")
    assert (second.exit_codes, second.summary["status"]) == ([0], "COMPLETE")
    assert second.summary["reason"] is None
    assert second.config["trial/attempt"] == 2


def test_a_trial_run_again_from_nothing_has_none_of_the_curves_it_had_before(folder: Path) -> None:
    said: list[str] = []

    def run_from_nothing(offset: float) -> None:
        listener, record = listener_of(folder, tell=said.append), trial(7, started=time.time())
        listener.trial_started(record)
        listener.measured(record, measurement(2, offset))
        ended = {"status": TrialStatus.COMPLETE, "ended": time.time()}
        listener.trial_ended(record.model_copy(update=ended))
        wandb.teardown()

    run_from_nothing(0.0)
    run_from_nothing(0.5)
    assert logged_once(folder).points == points_of([measurement(2, 0.5)])
    assert len(list(folder.glob("wandb/replaced/offline-run-*-0007/run-*.wandb"))) == 1
    assert said == []

    [uploaded] = parts_of(folder, f"{SWEEP_ID}-0007")
    set_aside(uploaded)
    run_from_nothing(1.0)
    assert [run.points for run in logged(folder, f"{SWEEP_ID}-0007")] == [
        points_of([measurement(2, 0.5)]),
        [],
    ]
    [warning] = said
    assert f"{SWEEP_ID}-0007 keeps the curves of an earlier training" in warning


def test_what_the_disk_had_no_room_for_is_logged_by_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's service goes on without a word, and so does `finish()`."""
    monkeypatch.setattr(wandb_runs, "_WRITES_WITHIN_S", 2.0)
    ledger, told, record = Ledger(folder), list[str](), trial(7)
    listener = listener_of(folder, tell=told.append)
    listener.trial_started(record)
    measurements = [measurement(step) for step in range(1, 201)]
    for each in measurements:
        ledger.append(7, each)
    for each in measurements[:20]:
        listener.measured(record, each)
    [part] = parts_of(folder, record.config.trial_id)
    wait_until(lambda: len(steps_in(part)) == 20)
    [service] = [p for p in psutil.Process().children() if p.name() == "wandb-core"]
    no_more = part.stat().st_size + 4096, resource.RLIM_INFINITY
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, no_more)
    for each in measurements[20:]:
        listener.measured(record, each)
    wait_until(lambda: part.stat().st_size == no_more[0])
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    ended = record.model_copy(update={"status": TrialStatus.COMPLETE, "last": measurements[-1]})
    listener.trial_ended(ended)
    run_trial(listener, trial(8), TrialStatus.COMPLETE)
    listener.sweep_ended([ended])
    [warning] = told
    assert f"W&B's file of run {SWEEP_ID}-0007 is cut short" in warning
    assert listener.upload_hints()[1:] == [
        "the same command: W&B's files do not hold 1 run in full"
    ]
    wandb.teardown()

    for _ in range(2):
        again = WandbListener(OFFLINE, folder, told.append)
        again.sweep_started(sweep_record(), base_record(), [ended])
        again.sweep_ended([ended])
        assert len(again.upload_hints()) == 1  # to send them
    first, second = logged(folder, f"{SWEEP_ID}-0007")
    assert first.exit_codes == []
    assert 20 <= len(first.points) < 200
    assert first.points + second.points == points_of(measurements)
    assert (second.exit_codes, second.summary["status"]) == ([0], "COMPLETE")
    assert len(told) == 1


def test_before_its_end_a_run_has_its_best_values_and_when_each_point_was_measured(
    folder: Path,
) -> None:
    listener, before = listener_of(folder), {"ood/acc_mean": 0.5}
    listener.trial_started(trial(7, best=before))
    record = trial(7, best={"forgetting/mean": 0.05})
    listener.measured(record, measurement(1).model_copy(update={"time": 1.7e9}))
    listener.sweep_ended([record])
    run = logged_once(folder)
    assert run.summary["best/forgetting/mean"] == 0.05
    assert run.summary["best/ood/acc_mean"] == 0.5
    assert run.times == [1.7e9]


def test_steps_measured_while_wandb_was_disabled_are_logged_by_a_later_attempt(
    folder: Path,
) -> None:
    ledger, disabled = Ledger(folder), listener_of(folder, WandbConfig(mode="disabled"))
    disabled.trial_started(trial(7))
    ledger.append(7, measurement(2))
    disabled.measured(trial(7), measurement(2))
    disabled.sweep_ended([])
    assert disabled.upload_hints() == []
    assert not (folder / "wandb").exists()
    wandb.teardown()

    listener, record = listener_of(folder), trial(7, attempt=2)
    listener.trial_started(record)
    listener.measured(record, measurement(2))
    listener.trial_ended(record.model_copy(update={"status": TrialStatus.COMPLETE}))
    assert logged_once(folder).points == points_of([measurement(2)])


def test_a_trial_started_again_while_open_keeps_its_run(folder: Path) -> None:
    listener = listener_of(folder)
    listener.trial_started(trial(7))
    listener.measured(trial(7), measurement(1))
    record = trial(7, attempt=2)
    listener.trial_started(record)
    for step in (1, 2):
        listener.measured(record, measurement(step))
    listener.trial_ended(record.model_copy(update={"status": TrialStatus.COMPLETE}))
    run = logged_once(folder)
    assert run.points == points_of([measurement(1), measurement(2)])
    assert run.config["trial/attempt"] == 2


def test_of_a_torn_part_the_records_stay_that_are_whole_however_long(folder: Path) -> None:
    """Longer than a block of the file, and so in several chunks; W&B's own reader decides."""
    listener, record = listener_of(folder), trial(7)
    listener.trial_started(record)
    for step in range(1, 6):
        metrics = {f"forgetting/task_{n}": step + n / 7 for n in range(1200)}
        listener.measured(record, Measurement(step=step, metrics=metrics, time=0))
    listener.trial_ended(record.model_copy(update={"status": TrialStatus.COMPLETE}))
    [part] = parts_of(folder, record.config.trial_id)

    def read() -> tuple[str, str]:
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
        done = subprocess.run(
            [*command, "-run-file", part], check=True, capture_output=True, text=True
        )
        return done.stdout, done.stderr

    whole = part.read_bytes()
    mend(part)
    assert part.read_bytes() == whole
    lengths = set()
    for kept in (0, *range(10_000, len(whole), 19_000)):
        part.write_bytes(whole[:kept])
        records, _ = read()
        mend(part)
        assert read() == (records, "")  # it says so of a torn one
        lengths.add(part.stat().st_size)
    assert len(lengths) > 5


def test_many_trials_leave_no_threads_and_no_open_files(folder: Path) -> None:
    listener = listener_of(folder)
    run_trial(listener, trial(0), TrialStatus.COMPLETE)
    threads, files = threading.active_count(), open_files()
    for number in range(1, 25):
        run_trial(listener, trial(number), TrialStatus.COMPLETE)
    assert threading.active_count() <= threads
    assert open_files() <= files


def test_the_upload_hint_finds_every_offline_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = listener_of(folder)
    run_trial(listener, trial(7), TrialStatus.COMPLETE)
    [hint] = listener.upload_hints()
    assert hint == "wandb sync sweeps/quickstart/wandb/offline-run-*"
    command = hint.replace("wandb sync", f"{WANDB} sync --dry-run", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Would sync 2 run(s)" in done.stderr


def test_the_upload_hint_survives_a_folder_with_a_space(tmp_path: Path) -> None:
    listener = listener_of(tmp_path / "my sweep")
    assert listener.upload_hints() == [f"wandb sync '{tmp_path}/my sweep/wandb'/offline-run-*"]


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_API_KEY": FAKE_KEY}, "online"),
        (None, {"WANDB_API_KEY": "malformed"}, "offline"),
        (None, {"WANDB_API_KEY": FAKE_KEY, "WANDB_MODE": "offline"}, "offline"),
        (None, {"WANDB_API_KEY": FAKE_KEY, "WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_API_KEY": FAKE_KEY, "WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "disabled", "WANDB_TAGS": "a,"}, "disabled"),
        ("disabled", {"WANDB_MODE": "foo"}, "disabled"),
        ("offline", {"WANDB_API_KEY": FAKE_KEY}, "offline"),
        ("online", {"WANDB_API_KEY": FAKE_KEY, "WANDB_MODE": "offline"}, "online"),
        ("online", {}, "offline"),
    ],
)
def test_the_mode_follows_the_file_then_the_environment_then_the_key(
    mode: Any,
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert WandbListener(WandbConfig(mode=mode), tmp_path)._runs.mode() == expected
    assert capfd.readouterr() == ("", "")


def test_without_tags_of_the_file_those_of_the_environment_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_TAGS", "x,y")
    listener = listener_of(folder, WandbConfig(mode="offline", project="tests"))
    run_trial(listener, trial(7), TrialStatus.COMPLETE)
    assert logged_once(folder).run["tags"] == ["x", "y"]


def test_online_without_a_key_is_told_once(folder: Path) -> None:
    told: list[str] = []
    listener = listener_of(folder, WandbConfig(mode="online", project="tests"), told.append)
    run_trial(listener, trial(7), TrialStatus.COMPLETE)
    assert told == ["warning: wandb.mode is online without a key, logging offline: `wandb login`"]
    assert logged_once(folder).points == points_of([measurement(1)])


def test_a_key_in_a_netrc_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1:9\n login user\n password {FAKE_KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    listener = WandbListener(WandbConfig(), tmp_path)
    assert listener._runs.mode() == "online"
    assert listener.upload_hints() == []


def test_an_offline_sweep_is_silent_and_writes_no_key(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    listener = listener_of(folder)
    run_trial(listener, trial(7), TrialStatus.FAILED)
    listener.sweep_ended([])
    wandb.teardown()
    assert capfd.readouterr() == ("", "")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert all(file.is_relative_to(folder / "wandb") for file in files)
    assert not [file for file in files if FAKE_KEY.encode() in file.read_bytes()]


def test_a_server_out_of_reach_turns_the_sweep_offline(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setitem(wandb_runs._RUN_SETTINGS, "init_timeout", 1)
    told: list[str] = []
    listener = listener_of(folder, WandbConfig(project="tests"), told.append)
    run_trial(listener, trial(7), TrialStatus.COMPLETE)
    assert [r.levelno for r in caplog.records if r.name == wandb_runs.__name__] == [logging.WARNING]
    assert "logging offline" in caplog.text
    [line] = told
    assert line.startswith("warning: W&B cannot be reached, logging offline: ")
    assert FAKE_KEY not in caplog.text
    assert len(listener.upload_hints()) == 1
    assert logged_once(folder).points == points_of([measurement(1)])
    assert len(logged(folder, f"{SWEEP_ID}-base")) == 1
    assert capfd.readouterr() == ("", "")


def test_a_broken_wandb_never_reaches_the_sweep(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(parents=True)
    (folder / "wandb").write_text("a file where W&B wants its folder")
    listener = listener_of(folder)
    for number in (1, 2):
        run_trial(listener, trial(number), TrialStatus.COMPLETE)
    listener.sweep_ended([])
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([r for r in warnings if r.name == wandb_runs.__name__]) == 1


def test_a_run_that_breaks_midway_is_still_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listener = listener_of(folder)
    record = trial(7)
    listener.trial_started(record)
    listener.measured(record, measurement(1))
    run = listener._runs.open[record.config.trial_id]

    def broken(*args: Any, **kwargs: Any) -> None:
        raise wandb.errors.CommError("gone")

    monkeypatch.setattr(run, "log", broken)
    monkeypatch.setattr(type(run.summary), "update", broken)
    listener.measured(record, measurement(2))
    listener.trial_ended(record.model_copy(update={"status": TrialStatus.DIVERGED}))
    assert "step 2 of trial 7" in caplog.text
    assert logged_once(folder).exit_codes == [1]
