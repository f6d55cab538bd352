"""Offline runs mirror the ledger: each trial is one run with one history, also after kills."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import pytest
import wandb
from builders import SWEEP_ID, running, sweep_config
from logged_runs import WANDB, LoggedRun, logged_runs

from trainables.config import DeepSpeedConfig, ModelConfig, TrainConfig
from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Measurement, TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord
from tune.config.sweep_config import WandbConfig
from tune.tracking import wandb_runs
from tune.tracking.wandb_listener import WandbListener

KEY = "f00d" * 10
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
    return tmp_path / "my sweep"


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
        method="full" if full else builders.adapter(rank=4, alpha=16, rslora=True),
        learning_rate=3e-4,
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
        "forgetting/arc.easy": 1 / 3 + offset,
    }
    return Measurement(step=step, metrics=metrics, time=time.time())


def start_sweep(folder: Path, config: WandbConfig = OFFLINE, **options: Any) -> WandbListener:
    """A start of the command, in a W&B service of its own."""
    wandb.teardown()
    listener = WandbListener(config, folder, **options)
    listener.sweep_started(sweep_record(), base_record(), [])
    return listener


def measure(folder: Path, listener: WandbListener, record: TrialRecord, *steps: int) -> None:
    for step in steps:
        point = measurement(step)
        Ledger(folder).append(record.number, point)
        listener.measured(record, point)


def end(
    listener: WandbListener, record: TrialRecord, status: TrialStatus, reason: str | None = None
) -> None:
    listener.trial_ended(record.model_copy(update={"status": status, "reason": reason}))


def run_trial(
    listener: WandbListener, record: TrialRecord, status: TrialStatus = TrialStatus.COMPLETE
) -> None:
    listener.trial_started(record)
    listener.measured(record, measurement(1))
    end(listener, record, status, f"why {status}")


def only_run(folder: Path, number: int = 7) -> LoggedRun:
    [run] = logged_runs(folder, f"{SWEEP_ID}-{number:04d}")
    return run


def test_each_trial_is_a_run_with_its_curves_settings_and_ending(folder: Path) -> None:
    listener = start_sweep(folder)
    lora, full, diverged, cancelled = trial(7), trial(8, full=True), trial(9), trial(10)
    curves = {n: [measurement(step, n / 10) for step in (1, 5, 9)] for n in (7, 8)}
    for record in (lora, full):
        listener.trial_started(record)
    for first, second in zip(*curves.values(), strict=True):
        listener.measured(lora, first)
        listener.measured(full, second)
    best = {"forgetting/mean": 0.1}
    last = {"last": curves[7][-1], "best": best}
    end(listener, lora.model_copy(update=last), TrialStatus.COMPLETE)
    end(listener, full, TrialStatus.OUT_OF_MEMORY, "too large")
    run_trial(listener, diverged, TrialStatus.DIVERGED)
    run_trial(listener, cancelled, TrialStatus.CANCELLED)
    listener.sweep_ended([])

    ids = [f"{SWEEP_ID}-{number:04d}" for number in (7, 8, 9, 10)]
    runs = {run.run["run_id"]: run for run in logged_runs(folder, *ids, f"{SWEEP_ID}-base")}
    first, second, third, fourth = (runs[run_id] for run_id in ids)
    for run, number in ((first, 7), (second, 8)):
        assert run.points == [m.metrics for m in curves[number]]
        assert run.steps == [1, 5, 9]
        assert run.times == [m.time for m in curves[number]]
        assert run.step_metrics["*"] == "train/global_step"
        assert run.run["run_group"] == SWEEP_ID
    assert [r.exit_codes for r in (first, second, third, fourth)] == [[0], [1], [1], [130]]
    assert (first.run["display_name"], first.run["job_type"]) == (
        "lora rank 4 alpha 16 lr=3e-4 #7",
        "lora",
    )
    assert (first.run["tags"], first.run["project"]) == (["a", "b"], "tests")
    assert {
        "lora/rank": 4,
        "lora/scaling": 8.0,  # 16 / sqrt(4)
        "train/learning_rate": 3e-4,
        "model/name": "tiny-model",
        "setting/group": "LoRA, rank 4",
        "trial/attempt": 1,
        "seed": 11,
        "search/lora/rank": 4,
    }.items() <= first.config.items()
    assert curves[7][-1].metrics.items() <= first.summary.items()
    assert first.summary["best/forgetting/mean"] == 0.1
    assert (first.summary["status"], first.summary["reason"]) == ("COMPLETE", None)
    assert (second.summary["status"], second.summary["reason"]) == ("OUT_OF_MEMORY", "too large")
    assert second.run["display_name"] == "full lr=3e-4 #8"
    assert second.config["deepspeed/zero_stage"] == 3
    assert not [key for key in second.config if key.startswith("lora/")]
    base = runs[f"{SWEEP_ID}-base"]
    assert base.points == [{**base_record().metrics, "train/global_step": 0}]
    assert base.summary["base/warnings"] == "at chance\na large batch"
    assert (base.config["setting/group"], base.exit_codes) == ("base", [0])


def test_a_trial_s_strengths_are_one_curve_of_its_run_also_when_logged_again(folder: Path) -> None:
    def point(strength: float, **altered: Any) -> Measurement:
        metrics = {"forgetting/arc.easy": strength / 4, "cost/gpu_h": 9.0}
        return Measurement(step=4, strength=strength, metrics=metrics, time=time.time(), **altered)

    listener, record = start_sweep(folder), trial(7)
    listener.trial_started(record)
    measure(folder, listener, record, 2, 4)
    for measured in (measurement(4), point(0.8), point(0.4), point(1, repair="no_intruders")):
        record = record.after(measured)
        listener.point_measured(record, measured)
    end(listener, record, TrialStatus.COMPLETE)
    at_its_end = only_run(folder)
    wandb.teardown()
    ended = record.model_copy(update={"status": TrialStatus.COMPLETE})
    WandbListener(OFFLINE, folder).sweep_started(sweep_record(), base_record(), [ended])
    for run in (at_its_end, only_run(folder)):
        assert run.steps == [2, 4, 5, 6, 7]
        assert [point for point in run.points if "strength/value" in point] == [
            {"strength/value": strength, "strength/forgetting/arc.easy": forgotten}
            for strength, forgotten in ((0.4, 0.1), (0.8, 0.2), (1.0, 1 / 3))
        ]
        assert run.step_metrics["strength/forgetting/arc.easy"] == "strength/value"
        assert not [key for key in run.summary if key.startswith("strength/")]
        assert run.summary["forgetting/arc.easy"] == 1 / 3


def test_a_restarted_trial_is_written_anew_as_one_run_with_one_history(folder: Path) -> None:
    """Also where W&B's file was torn by the kill, or the earlier start logged nothing."""
    listener, record = start_sweep(folder), trial(7)
    listener.trial_started(record)
    measure(folder, listener, record, 2, 4)
    [torn] = folder.glob(f"wandb/offline-run-*/run-{SWEEP_ID}-0007.wandb")
    os.truncate(torn, 20)
    disabled = start_sweep(folder, WandbConfig(mode="disabled"))
    disabled.trial_started(record)
    measure(folder, disabled, record, 6)
    assert disabled.upload_hints() == []

    again, record = start_sweep(folder), trial(7, attempt=2)
    again.trial_started(record)
    measure(folder, again, record, 6, 8)
    again.trial_started(record)  # once more, while it is open
    end(again, record, TrialStatus.COMPLETE)
    run = only_run(folder)
    assert run.steps == [2, 4, 6, 8]
    assert (run.exit_codes, run.summary["status"]) == ([0], "COMPLETE")
    assert run.config["trial/attempt"] == 2
    assert len(logged_runs(folder, f"{SWEEP_ID}-base")) == 1


def test_what_was_uploaded_is_not_logged_again(folder: Path) -> None:
    listener, record = start_sweep(folder), trial(7)
    listener.trial_started(record)
    measure(folder, listener, record, 2, 4)
    listener.sweep_ended([record])
    [uploaded] = folder.glob(f"wandb/offline-run-*/run-{SWEEP_ID}-0007.wandb")
    uploaded.with_suffix(".wandb.synced").touch()  # as `wandb sync` does
    again = start_sweep(folder)
    again.trial_started(record)
    measure(folder, again, record, 6)
    end(again, record, TrialStatus.COMPLETE)
    first, second = logged_runs(folder, f"{SWEEP_ID}-0007")
    assert (first.steps, second.steps) == ([2, 4], [6])
    assert (first.exit_codes, first.summary["status"]) == ([130], "INTERRUPTED")


def test_the_upload_command_finds_every_run_and_runs_leave_no_threads_and_files(
    folder: Path,
) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    listener = start_sweep(folder)
    run_trial(listener, trial(0))
    threads, files = threading.active_count(), open_files()
    for number in range(1, 12):
        run_trial(listener, trial(number))
    assert threading.active_count() <= threads
    assert open_files() <= files
    [hint] = listener.upload_hints()
    assert hint == f"wandb sync '{folder}/wandb'/offline-run-*"
    command = hint.replace("wandb sync", f"{WANDB} sync --dry-run", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Would sync 13 run(s)" in done.stderr


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_API_KEY": KEY}, "online"),
        (None, {"WANDB_API_KEY": "malformed"}, "offline"),
        (None, {"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_MODE": "disabled", "WANDB_TAGS": "a,"}, "disabled"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "online"),
        ("online", {}, "offline"),
    ],
)
def test_the_mode_follows_the_file_then_the_environment_then_the_key(
    mode: Any,
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    messages: list[str] = []
    assert WandbListener(WandbConfig(mode=mode), tmp_path, messages.append)._runs.mode() == expected
    says_so = any("`wandb login`" in message for message in messages)
    assert says_so is ((mode, expected) == ("online", "offline"))


def test_an_offline_sweep_prints_nothing_and_writes_no_key(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    listener = start_sweep(folder)
    run_trial(listener, trial(7), TrialStatus.FAILED)
    listener.sweep_ended([])
    wandb.teardown()
    assert capfd.readouterr() == ("", "")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert all(file.is_relative_to(folder / "wandb") for file in files)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_without_a_server_the_sweep_logs_offline_and_says_so_once(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setitem(wandb_runs._RUN_SETTINGS, "init_timeout", 1)
    messages: list[str] = []
    listener = start_sweep(folder, WandbConfig(project="tests"), notify=messages.append)
    run_trial(listener, trial(7))
    assert [r.levelno for r in caplog.records if r.name == wandb_runs.__name__] == [logging.WARNING]
    [line] = messages
    assert line.startswith("warning: W&B cannot be reached, logging offline: ")
    assert KEY not in caplog.text
    assert only_run(folder).steps == [1]
    assert len(logged_runs(folder, f"{SWEEP_ID}-base")) == 1
    assert capfd.readouterr() == ("", "")


def test_a_broken_wandb_never_reaches_the_sweep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(parents=True)
    (folder / "wandb").write_text("a file where W&B wants its folder")
    listener = start_sweep(folder)
    for number in (1, 2):
        run_trial(listener, trial(number))
    listener.sweep_ended([])
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([r for r in warnings if r.name == wandb_runs.__name__]) == 1

    (folder / "wandb").unlink()
    listener, record = start_sweep(folder), trial(7)
    listener.trial_started(record)
    listener.measured(record, measurement(1))
    run = listener._runs.open[record.config.trial_id]

    def broken(*args: Any, **kwargs: Any) -> None:
        raise wandb.errors.CommError("gone")

    monkeypatch.setattr(run, "log", broken)
    monkeypatch.setattr(type(run.summary), "update", broken)
    listener.measured(record, measurement(2))
    end(listener, record, TrialStatus.DIVERGED)
    assert only_run(folder).exit_codes == [1]
