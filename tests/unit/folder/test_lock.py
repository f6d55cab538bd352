"""One driver at a time: who holds a sweep, who is refused, who takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from builders import running, trial

from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.record_paths import SweepFolder
from tune.folder.lock import LockRecord, SweepLock
from tune.folder.process import Process

PROJECT = Path(__file__).parents[3]
INTERVAL = 0.1
HOLDER = """
import sys
from pathlib import Path
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement
from tune.folder.lock import SweepLock

try:
    with SweepLock(Path(sys.argv[1]), float(sys.argv[2])) as lock:
        print("HELD", flush=True)
        try:
            for step, _ in enumerate(sys.stdin):
                measurement = Measurement(step=step, metrics={}, time=0.0)
                Ledger(Path(sys.argv[1]), lock.check).append(0, measurement)
                print("WRITTEN", flush=True)
        except KeyboardInterrupt:
            lock.check()
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts drivers that hold the lock until their input ends; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, interval: float = INTERVAL) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), str(interval)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def codes(racing: list[subprocess.Popen[str]]) -> list[int]:
    """Exit codes of drivers that race; who holds the sweep lets go once all others have ended."""
    while sum(driver.poll() is None for driver in racing) > 1:
        time.sleep(0.05)
    for driver in racing:
        driver.communicate(timeout=60)
    return sorted(driver.returncode for driver in racing)


def read(file: Path) -> LockRecord:
    return LockRecord.model_validate_json(file.read_bytes())


def holder_of(folder: Path) -> LockRecord:
    """Who holds the sweep, with its last sign of life."""
    paths, token = SweepFolder(folder), "none yet"
    last = file = paths.lock
    while file.exists():
        last, token = file, read(file).token
        file = paths.lock_after(token)
    heartbeat = paths.heartbeat(token)
    return read(heartbeat if heartbeat.exists() else last)


def write_lock(
    file: Path,
    age: float = 0,
    interval: float = INTERVAL,
    token: str = "other",  # noqa: S107
    **process: Any,
) -> None:
    """The lock of some other driver that gave its last sign of life `age` seconds ago."""
    holder = Process.current().model_copy(update=process)
    record = LockRecord(
        process=holder,
        since="2026-01-01 00:00:00",
        token=token,
        heartbeat=time.time() - age,
        interval=interval,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(record.model_dump_json())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path) -> str:
    before = snapshot(folder)
    with pytest.raises(UserError) as caught, SweepLock(folder, INTERVAL):
        pass
    assert snapshot(folder) == before
    return str(caught.value)


def test_lock_names_its_holder_and_is_removed_at_the_end(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), SweepLock(tmp_path / "sweep") as lock:
        lock.check()
        held = json.loads((tmp_path / "sweep" / "lock.json").read_text())
        assert held["process"]["pid"] == os.getpid()
        1 / 0  # noqa: B018 - also where the driver fails
    assert list((tmp_path / "sweep").iterdir()) == []


def test_second_driver_is_refused_and_learns_who_holds_the_sweep(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    holder = start(tmp_path, interval=30)
    assert first_line(holder) == "HELD"
    message = refused(tmp_path)
    held = holder_of(tmp_path)
    assert f"process {holder.pid} on {held.process.host} since {held.since}" in message
    assert "last sign of life 20" in message
    assert "wait for it or stop it" in message
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a parent may never look
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).process.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_held_by_dead", [False, True])
def test_of_racing_drivers_one_holds_the_sweep(
    tmp_path: Path, start: Callable[..., Any], is_held_by_dead: bool
) -> None:
    if is_held_by_dead:
        write_lock(tmp_path / "lock.json", interval=600, started="1")  # its process id was reused
    assert codes([start(tmp_path) for _ in range(3)]) == [0, 2, 2]
    assert list(tmp_path.iterdir()) == []


def test_driver_elsewhere_loses_the_sweep_when_its_heart_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_lock(tmp_path / "lock.json", 7 * INTERVAL, host="other")
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).token != "other"
    assert [path.name for path in tmp_path.iterdir()] == ["lock.other.json"]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: held by process {os.getpid()} on other since 2026")


@pytest.mark.parametrize("age", [1000, -1000])
def test_driver_whose_clock_is_off_keeps_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    write_lock(tmp_path / "lock.json", age, host="other")
    slept = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(slept[-1] + seconds)
        if slept[-1] > 5 * INTERVAL:
            write_lock(tmp_path / "lock.other.heartbeat.json", age - 10, host="other")

    monkeypatch.setattr("tune.folder.lock.time.sleep", sleep)
    with pytest.raises(UserError, match="another driver"), SweepLock(tmp_path, INTERVAL):
        pass
    assert holder_of(tmp_path).token == "other"


def test_suspended_driver_writes_nothing_after_another_took_its_sweep(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    suspended = start(tmp_path)
    assert first_line(suspended) == "HELD"
    suspended.stdin.write("\n")
    suspended.stdin.flush()
    assert first_line(suspended) == "WRITTEN"
    suspended.send_signal(signal.SIGSTOP)
    suspended.stdin.write("\n")  # it writes as soon as it is awake
    suspended.stdin.flush()
    token = holder_of(tmp_path).token
    taken = SweepFolder(tmp_path).lock_after(token)
    write_lock(taken, interval=600, host="taker")  # as another machine would after the limit
    time.sleep(7 * INTERVAL)
    before = snapshot(tmp_path / "trials")
    suspended.send_signal(signal.SIGCONT)
    output, _ = suspended.communicate(timeout=30)
    assert suspended.returncode == 2
    assert "was taken over by another driver" in output
    assert "on taker" in output
    assert "WRITTEN" not in output
    assert [m.step for m in Ledger(tmp_path).measurements(0)] == [0]
    assert snapshot(tmp_path / "trials") == before
    assert taken.exists()


def test_driver_that_is_suspended_in_a_write_does_not_finish_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = SweepLock(tmp_path, interval=600).__enter__()
    ledger = Ledger(tmp_path, lock.check)
    ledger.write_trial(running(0))
    later = time.time() + 3601

    def suspend(file: Path) -> None:
        write_lock(SweepFolder(tmp_path).lock_after(holder_of(tmp_path).token), host="taker")
        monkeypatch.setattr("tune.folder.lock.time.time", lambda: later)

    monkeypatch.setattr("trainables.storage.disk.flush", suspend)
    for write in (lambda: ledger.write_trial(trial(0)), lock.check, lock.__exit__):
        with pytest.raises(UserError, match="on taker"):
            write()
    assert ledger.trials() == [running(0)]


def test_lock_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("{")
    assert f"{tmp_path}/lock.json: is not a lock" in refused(tmp_path)
