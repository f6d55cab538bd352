"""W&B after drivers killed at random: one run per trial, every step once, the right end."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from builders import SWEEP_ID, base_record
from wandb_driver import REASONS, STEPS, STRENGTHS, TRIALS
from wandb_server import WandbServer, wandb_server

from trainables.records.ledger import Ledger

DRIVER = Path(__file__).parents[1].joinpath("wandb_driver.py")
ROOT = DRIVER.parents[2]
WANDB = str(Path(sys.executable).with_name("wandb"))
EVENTS_OF_A_WHOLE_RUN = 3 * (1 + TRIALS * (2 + len(STEPS) + len(STRENGTHS)))
TIME_LIMIT = 120


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No settings of the machine's, and no server but one of the test's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return kept | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "NETRC": str(tmp_path / "no-netrc"),
        "WANDB_CONFIG_DIR": str(tmp_path / "no-config"),
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_ERROR_REPORTING": "false",
    }


def drive(folder: Path, mode: str, events: int, environment: dict[str, str]) -> str | None:
    """Run the driver until it kills itself; what a whole run printed, else None."""
    command = [sys.executable, str(DRIVER), str(folder), mode, str(events)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    services: list[psutil.Process] = []
    while process.poll() is None:
        services = psutil.Process(process.pid).children() or services
        time.sleep(0.05)
    for service in services:  # the whole machine went down with it
        try:
            service.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(services, timeout=TIME_LIMIT)
    printed = process.communicate(timeout=TIME_LIMIT)[0]
    assert process.returncode in (0, -signal.SIGKILL)
    return printed if process.returncode == 0 else None


def kill_and_finish(folder: Path, modes: list[str], environment: dict[str, str]) -> str:
    """Kill a driver of each mode but the last at a random event; what the last one printed."""
    chance = random.Random(7)
    for mode in modes[:-1]:
        drive(folder, mode, chance.randrange(2, EVENTS_OF_A_WHOLE_RUN // 3), environment)
    printed = drive(folder, modes[-1], 0, environment)
    assert printed is not None
    return printed.strip()


def sync(hint: str, server: WandbServer, environment: dict[str, str], elsewhere: Path) -> None:
    """Type the command that the sweep printed."""
    assert hint.startswith("wandb sync ")
    command = shlex.quote(WANDB) + hint.removeprefix("wandb")
    reachable = environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "f00d" * 10}
    elsewhere.mkdir(exist_ok=True)  # it leaves a log where it runs
    subprocess.run(
        ["bash", "-c", command], env=reachable, check=True, timeout=TIME_LIMIT, cwd=elsewhere
    )


def check(server: WandbServer, folder: Path) -> None:
    """The server has what the ledger has: no more, no less, in order, with the right ends."""
    numbers = range(TRIALS)
    assert set(server.runs) == {f"{SWEEP_ID}-base", *(f"{SWEEP_ID}-{n:04d}" for n in numbers)}
    for record in Ledger(folder).trials():
        run = server.runs[record.config.trial_id]
        history = Ledger(folder).measurements(record.number)
        assert list(STEPS) == [m.step for m in history]
        curve = run.history[len(history) :]
        assert run.steps == [*STEPS, *range(STEPS[-1] + 1, STEPS[-1] + 1 + len(curve))]
        whole = [] if record.number in REASONS else sorted([*STRENGTHS, 1])
        assert [point["strength/value"] for point in curve] == whole
        for point, view in zip(curve, record.curve if whole else (), strict=True):
            assert point["strength/forgetting/mean"] == view.metrics["forgetting/mean"]
        for point, logged in zip(run.history, history, strict=False):
            wanted = {**logged.metrics, "train/global_step": logged.step, "_timestamp": logged.time}
            assert wanted.items() <= point.items()
        # W&B sends no key whose value is None.
        assert (run.summary["status"], run.summary.get("reason")) == (record.status, record.reason)
        assert record.last is not None
        assert record.last.metrics.items() <= run.summary.items()
        assert run.exit_code == (1 if record.number in REASONS else 0)
        assert run.fields["groupName"] == SWEEP_ID
    run = server.runs[f"{SWEEP_ID}-base"]
    assert (run.steps, run.exit_code, run.summary["status"]) == ([0], 0, "COMPLETE")
    assert base_record().metrics.items() <= run.history[0].items()


def test_offline_runs_of_killed_drivers_upload_as_whole_runs(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "a sweep"
    hint = kill_and_finish(folder, ["offline"] * 3, environment)
    with wandb_server() as server:
        for _ in range(2):  # typed again it changes nothing
            sync(hint, server, environment, tmp_path / "elsewhere")
            check(server, folder)


def test_online_runs_of_killed_drivers_go_on_where_the_server_is(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with wandb_server() as server:
        reachable = environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "f00d" * 10}
        hint = kill_and_finish(tmp_path, ["offline", "online", "online"], reachable)
        if hint:  # trials that ended while the sweep was offline
            sync(hint, server, environment, tmp_path / "elsewhere")
        check(server, tmp_path)
