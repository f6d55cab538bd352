"""What W&B refuses or never gets is reported, and logged by a later online start."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import wandb
from builders import SWEEP_ID, base_record, record_sweep, sweep_config, sweep_record
from logged_runs import logged_runs
from wandb_driver import measurement, trial
from wandb_server import WandbServer, wandb_server

from analysis.sweeps import open_sweeps
from analysis.tracking import wandb_inspection
from trainables.inspection.inspection_records import (
    InspectionFolder,
    InspectionRecord,
    RepresentationDrift,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.sweep_config import WandbConfig
from tune.config.sweep_file import load_sweep
from tune.tracking import wandb_endings, wandb_listener, wandb_runs
from tune.tracking.wandb_endings import Endings
from tune.tracking.wandb_listener import WandbListener
from tune.tracking.wandb_settings import in_its_project

ONLINE, OFFLINE = WandbConfig(mode="online", project="p"), WandbConfig(mode="offline", project="p")
LACKS_ONE = "the same command with W&B online: it has not confirmed 1 run in full"
LACKS_TWO = "the same command with W&B online: it has not confirmed 2 runs in full"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The only server that the test's process knows; it is asked again without delay."""
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-config"))
    monkeypatch.setenv("WANDB_API_KEY", "f00d" * 10)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(wandb_listener, "_PAUSES", (0,))
    monkeypatch.setitem(wandb_runs._RUN_SETTINGS, "init_timeout", 3)
    with wandb_server() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running
        wandb.teardown()


def name_of(number: int) -> str:
    return f"{SWEEP_ID}-{number:04d}"


def start_sweep(folder: Path, config: WandbConfig) -> WandbListener:
    """A start of the command, in a service process of its own."""
    wandb.teardown()
    finished = [r for r in Ledger(folder).trials() if r.status is not TrialStatus.RUNNING]
    listener = WandbListener(config, folder)
    listener.sweep_started(sweep_record(sweep_config()), base_record(), finished)
    return listener


def start(folder: Path, listener: WandbListener, number: int) -> TrialRecord:
    record = trial(folder, number)
    Ledger(folder).write_trial(record)
    listener.trial_started(record)
    return record


def train(folder: Path, listener: WandbListener, number: int, *steps: int) -> None:
    for step in steps:
        Ledger(folder).append(number, measurement(number, step))
        listener.measured(trial(folder, number), measurement(number, step))


def end(folder: Path, listener: WandbListener, number: int) -> TrialRecord:
    last = Ledger(folder).measurements(number)[-1]
    ending = {"status": TrialStatus.COMPLETE, "ended": time.time(), "last": last}
    record = trial(folder, number).model_copy(update=ending)
    Ledger(folder).write_trial(record)
    listener.trial_ended(record)
    return record


def end_sweep(folder: Path, listener: WandbListener) -> list[str]:
    listener.sweep_ended(Ledger(folder).trials())
    return listener.upload_hints()


def finish(folder: Path, listener: WandbListener, number: int, *steps: int) -> TrialRecord:
    """A trial from its start to its end."""
    start(folder, listener, number)
    train(folder, listener, number, *steps)
    return end(folder, listener, number)


@pytest.mark.parametrize(("mode", "kept"), [("online", "tester"), ("offline", None)])
def test_a_sweep_keeps_the_project_that_it_went_online_in(
    mode: Literal["online", "offline"],
    kept: str | None,
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment of a later start would else send its runs to another entity's project."""
    in_project = sweep_config(name="s", wandb={"project": "p"})
    Ledger(tmp_path / "s").write_sweep(sweep_record(in_project))
    end_sweep(tmp_path / "s", start_sweep(tmp_path / "s", WandbConfig(mode=mode, project="p")))
    monkeypatch.setenv("WANDB_ENTITY", "others")
    again = in_its_project(load_sweep("quickstart", ["name=s"]), tmp_path).wandb
    assert (again.project, again.entity) == ("p", kept or "others")


def test_what_a_revoked_key_kept_from_wandb_is_reported_and_logged_later(
    tmp_path: Path, server: WandbServer
) -> None:
    listener = start_sweep(tmp_path, ONLINE)
    finish(tmp_path, listener, 0, 2, 4)
    start(tmp_path, listener, 1)
    server.is_key_valid = False
    train(tmp_path, listener, 1, 2, 4)
    end(tmp_path, listener, 1)
    server.is_key_valid = True
    assert end_sweep(tmp_path, listener) == [LACKS_ONE]
    assert (server.runs[name_of(0)].state, server.runs[name_of(1)].state) == ("finished", "running")

    assert end_sweep(tmp_path, start_sweep(tmp_path, ONLINE)) == []
    for number in (0, 1):
        assert server.runs[name_of(number)].steps == [2, 4]
        assert server.runs[name_of(number)].state == "finished"
    asked = server.questions
    assert end_sweep(tmp_path, start_sweep(tmp_path, ONLINE)) == []
    assert server.questions == asked  # all is noted


@pytest.mark.slow
def test_a_run_deleted_in_the_browser_keeps_no_later_run_offline(
    tmp_path: Path, server: WandbServer
) -> None:
    listener = start_sweep(tmp_path, ONLINE)
    start(tmp_path, listener, 0)
    server.delete(name_of(0))
    train(tmp_path, listener, 0, 2)
    end(tmp_path, listener, 0)
    assert end_sweep(tmp_path, listener) == [LACKS_ONE]
    again = start_sweep(tmp_path, ONLINE)
    finish(tmp_path, again, 1, 2)
    assert end_sweep(tmp_path, again) == []
    assert again.is_online()
    assert server.runs[name_of(1)].steps == [2]


def test_inspections_are_not_sent_to_a_run_deleted_in_the_browser(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No views could be made of the others, else."""
    monkeypatch.setitem(wandb_inspection.RUN_SETTINGS, "init_timeout", 3)
    listener = start_sweep(tmp_path, ONLINE)
    ended = finish(tmp_path, listener, 0, 2).ended
    assert end_sweep(tmp_path, listener) == []
    server.delete(name_of(0))
    record_sweep(tmp_path, *Ledger(tmp_path).trials())
    drift = RepresentationDrift(layer=0, cka_drift=0.1, cka_drift_without_first=0.2)
    InspectionFolder(tmp_path).write(
        InspectionRecord(
            number=0, trial_id=name_of(0), key="a", ended=ended, representation=(drift,)
        )
    )
    [sweep] = open_sweeps([tmp_path])
    wandb_inspection.log_inspection(sweep, "online")
    assert name_of(0) not in server.runs
    assert (tmp_path / "wandb" / "inspection.json").exists()  # it was tried


def test_on_a_new_head_no_finished_run_is_logged_again(tmp_path: Path, server: WandbServer) -> None:
    """What W&B has is noted on the head's own disk; a head without notes asks W&B."""
    listener = start_sweep(tmp_path, ONLINE)
    for number in range(2):
        finish(tmp_path, listener, number, 2)
    folders = len(list(tmp_path.glob("wandb/run-*")))
    start_sweep(tmp_path, ONLINE)  # after a kill
    assert len(list(tmp_path.glob("wandb/run-*"))) == folders  # no run was opened again
    wandb.teardown()
    shutil.rmtree(tmp_path / "wandb")
    assert end_sweep(tmp_path, start_sweep(tmp_path, ONLINE)) == []
    assert not list(tmp_path.glob("wandb/run-*"))


def test_ends_are_asked_for_page_by_page_the_newest_first_while_there_is_time(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, endings = start_sweep(tmp_path, ONLINE), Endings(tmp_path, "p")
    for number in range(3):
        record = finish(tmp_path, listener, number, 2)
        endings.lacking[name_of(number)] = f"{record.status} 1 {record.ended}"
    seconds = iter([0.0, 1.0, 31.0])
    with monkeypatch.context() as patch:
        patch.setattr(wandb_endings, "PER_PAGE", 2)
        patch.setattr(wandb_endings, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
        endings.ask()
    assert list(endings.lacking) == [name_of(0)]
    endings.lacking[name_of(0)] += "1"  # a retry ends later
    endings.ask()
    assert list(endings.lacking) == [name_of(0)]


def test_an_end_that_wandb_shows_only_later_is_asked_for_again(
    tmp_path: Path, server: WandbServer
) -> None:
    listener = start_sweep(tmp_path, ONLINE)
    finish(tmp_path, listener, 0, 2)
    server.answers_behind = 1
    assert end_sweep(tmp_path, listener) == []
    assert server.questions == 2


def test_a_run_that_was_online_waits_for_an_online_start(
    tmp_path: Path, server: WandbServer
) -> None:
    listener = start_sweep(tmp_path, ONLINE)
    start(tmp_path, listener, 0)
    train(tmp_path, listener, 0, 2, 4)
    server.is_key_valid = False
    train(tmp_path, listener, 0, 6, 8)
    end_sweep(tmp_path, listener)  # interrupted; nothing more arrives, not even what W&B has
    server.is_key_valid = True

    offline = start_sweep(tmp_path, OFFLINE)
    start(tmp_path, offline, 0)
    train(tmp_path, offline, 0, 10)
    end(tmp_path, offline, 0)
    assert end_sweep(tmp_path, offline) == [LACKS_TWO]

    assert end_sweep(tmp_path, start_sweep(tmp_path, ONLINE)) == []
    assert server.runs[name_of(0)].steps == [2, 4, 6, 8, 10]
    assert server.runs[name_of(0)].state == "finished"


def test_a_trial_that_could_not_connect_beside_open_runs_is_logged_at_the_end(
    tmp_path: Path, server: WandbServer
) -> None:
    listener = start_sweep(tmp_path, ONLINE)
    start(tmp_path, listener, 0)
    server.inits_refused.add(name_of(1))
    finish(tmp_path, listener, 1, 2, 4)
    finish(tmp_path, listener, 2, 2)  # later ones wait for the network no more
    train(tmp_path, listener, 0, 2)
    end(tmp_path, listener, 0)
    assert end_sweep(tmp_path, listener) == [f"wandb sync {tmp_path}/wandb/offline-run-*"]
    assert server.runs[name_of(0)].steps == [2]
    [first], [second] = (logged_runs(tmp_path, name_of(number)) for number in (1, 2))
    assert (first.steps, second.steps) == ([2, 4], [2])


def test_at_the_end_all_open_runs_wait_together_for_a_server_that_is_out(
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(wandb_runs._RUN_SETTINGS, "finish_timeout", 2)
    listener = start_sweep(tmp_path, ONLINE)
    for number in range(5):
        start(tmp_path, listener, number)
        train(tmp_path, listener, number, 2)
    listener._runs.ask()  # of the base, so that nothing is left to ask for at the end
    server.is_out = True
    began = time.monotonic()
    end_sweep(tmp_path, listener)
    assert 2 <= time.monotonic() - began < 8
    assert len([r for r in caplog.records if r.name == wandb_runs.__name__]) == 1
