"""W&B after kills: one run per trial, every step once, the right end, on a server that counts."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from builders import SWEEP_ID, base_record
from wandb_driver import REASONS, STEPS, TRIALS
from wandb_server import WandbServer, wandb_server

from trainables.records.ledger import Ledger
from tune.tracking.wandb_parts import mend, parts_of, steps_in

DRIVER = Path(__file__).parents[1].joinpath("wandb_driver.py")
ROOT = DRIVER.parents[2]
WANDB = str(Path(sys.executable).with_name("wandb"))
EVENTS_OF_A_WHOLE_RUN = 3 * (1 + TRIALS * (2 + len(STEPS)))
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


def tear(folder: Path, chance: random.Random) -> None:
    """Every other time, cut the end off the newest part, as a power cut does."""
    if chance.random() < 0.5:
        return
    newest = max(folder.glob("wandb/*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    size = newest.stat().st_size
    os.truncate(newest, max(0, size - chance.randrange(1, 200)))


def killed_again_and_again(
    folder: Path,
    mode: str,
    environment: dict[str, str],
    kills: int,
    after: Callable[[random.Random], None] | None = None,
) -> str:
    """Kill the driver at random events so many times, then let it run to its end."""
    chance = random.Random(7)
    for _ in range(kills):
        # Early ones more often: they come on top of each other.
        drive(folder, mode, chance.randrange(2, EVENTS_OF_A_WHOLE_RUN // 4), environment)
        if after is not None:
            after(chance)
    printed = drive(folder, mode, 0, environment)
    assert printed is not None
    return printed.strip()


def sync(hint: str, server: WandbServer, environment: dict[str, str]) -> None:
    """Type the command that the sweep printed."""
    assert hint.startswith("wandb sync ")
    command = shlex.quote(WANDB) + hint.removeprefix("wandb")
    reachable = environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "f00d" * 10}
    with TemporaryDirectory() as elsewhere:  # it leaves a log where it runs
        subprocess.run(
            ["bash", "-c", command],
            env=reachable,
            check=True,
            timeout=TIME_LIMIT,
            cwd=elsewhere,
        )


def check(server: WandbServer, folder: Path) -> None:
    """The server has what the ledger has: no more, no less, in order, with the right ends."""
    numbers = range(TRIALS)
    assert set(server.runs) == {f"{SWEEP_ID}-base", *(f"{SWEEP_ID}-{n:04d}" for n in numbers)}
    for record in Ledger(folder).trials():
        run = server.runs[record.config.trial_id]
        history = Ledger(folder).measurements(record.number)
        assert run.steps == list(STEPS) == [m.step for m in history]
        for point, logged in zip(run.history, history, strict=True):
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


@pytest.mark.slow
def test_offline_parts_of_killed_drivers_join_to_whole_runs(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "a sweep"
    hint = killed_again_and_again(folder, "offline", environment, 8, partial(tear, folder))

    parts = {n: parts_of(folder, f"{SWEEP_ID}-{n:04d}") for n in range(TRIALS)}
    assert max(map(len, parts.values())) > 3
    for number in range(TRIALS):
        assert [step for part in parts[number] for step in steps_in(part)] == list(STEPS)
    with wandb_server() as server:
        sync(hint, server, environment)
        check(server, folder)
        sync(hint, server, environment)  # and typed again it changes nothing
        check(server, folder)


def test_a_run_s_parts_are_looked_for_in_its_own_folders_alone(tmp_path: Path) -> None:
    second = "run-20260101_000000"
    own, other = f"{second}-{SWEEP_ID}-0001", f"{second}-{SWEEP_ID}-0002"
    for name in (own, f"{own}-1", f"offline-{own}", other):  # the second of the same second
        part = tmp_path / "wandb" / name / f"run-{SWEEP_ID}-0001.wandb"
        part.parent.mkdir(parents=True)
        part.touch()
    found = {part.parent.name for part in parts_of(tmp_path, f"{SWEEP_ID}-0001")}
    assert found == {own, f"{own}-1", f"offline-{own}"}


def test_a_torn_part_is_cut_to_its_whole_records(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    drive(tmp_path, "offline", 0, environment)
    part = parts_of(tmp_path, f"{SWEEP_ID}-0000")[-1]
    whole = part.read_bytes()
    mend(part)
    assert part.read_bytes() == whole
    # Places within a step's record, whose steps before it are to stay.
    for kept, tail in product(range(len(whole) // 2, len(whole), 331), (b"", b"\0" * 3000)):
        part.write_bytes(whole[:kept] + tail)
        mend(part)
        mended = part.read_bytes()
        assert len(mended) <= kept
        assert whole.startswith(mended)
        steps = steps_in(part)
        assert steps == list(STEPS)[: len(steps)]
        for longer in range(len(mended) + 1, kept + 1, 40):  # and no less than it could keep
            part.write_bytes(whole[:longer])
            assert steps_in(part) == steps


def test_a_part_cut_before_its_first_record_holds_up_no_upload(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    drive(tmp_path, "offline", EVENTS_OF_A_WHOLE_RUN // 3, environment)
    unfinished = [r for r in Ledger(tmp_path).trials() if r.ended is None]
    assert unfinished
    for record in unfinished:
        for part in parts_of(tmp_path, record.config.trial_id):
            os.truncate(part, 20)
    hint = drive(tmp_path, "offline", 0, environment)
    assert hint is not None
    with wandb_server() as server:
        sync(hint.strip(), server, environment)
        check(server, tmp_path)


def test_runs_on_a_server_outlive_killed_drivers(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with wandb_server() as server:
        reachable = environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "f00d" * 10}
        assert killed_again_and_again(tmp_path, "online", reachable, 5) == ""
        check(server, tmp_path)


def test_a_sweep_that_goes_online_uploads_what_it_logged_offline(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    drive(tmp_path, "offline", EVENTS_OF_A_WHOLE_RUN // 2, environment)
    with wandb_server() as server:
        reachable = environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "f00d" * 10}
        assert drive(tmp_path, "online", 0, reachable)
        sync(f"wandb sync {tmp_path}/wandb/offline-run-*", server, environment)
        check(server, tmp_path)
