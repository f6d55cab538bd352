"""One driver at a time: who holds a sweep, who is refused, who takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainables.errors import UserError
from trainables.records.record_paths import SweepFolder
from trainables.storage.storage import LocalStorage
from tune.folder.lock import LockRecord, SweepLock
from tune.folder.process import Process

PROJECT = Path(__file__).parents[3]
INTERVAL = 0.1
HOLDER = """
import sys
from pathlib import Path
from trainables.errors import UserError
from tune.folder.lock import SweepLock

try:
    with SweepLock(Path(sys.argv[1]), float(sys.argv[2])) as lock:
        print("HELD", flush=True)
        try:
            sys.stdin.read()
        except KeyboardInterrupt:
            print("WOKEN", flush=True)
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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(folder: Path) -> str:
    before = snapshot(folder)
    with pytest.raises(UserError) as caught, SweepLock(folder, INTERVAL):
        pass
    assert snapshot(folder) == before
    return str(caught.value)


def test_the_lock_names_its_holder_and_goes_at_the_end(tmp_path: Path) -> None:
    with SweepLock(tmp_path / "sweep") as lock:
        lock.check()
        held = json.loads((tmp_path / "sweep" / "lock.json").read_text())
        assert held["process"]["pid"] == os.getpid()
        assert held["interval"] > 0
    assert list((tmp_path / "sweep").iterdir()) == []


def test_the_lock_goes_when_the_driver_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), SweepLock(tmp_path):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_removed_is_no_failure_of_its_driver(tmp_path: Path) -> None:
    with SweepLock(tmp_path, interval=600):
        (tmp_path / "lock.json").unlink()
        (tmp_path / "lock.json").mkdir()


def test_the_heartbeat_is_renewed(tmp_path: Path) -> None:
    with SweepLock(tmp_path, interval=0.02):
        first = holder_of(tmp_path)
        deadline = time.monotonic() + 10
        while holder_of(tmp_path).heartbeat == first.heartbeat and time.monotonic() < deadline:
            time.sleep(0.01)
        second = holder_of(tmp_path)
    assert second.heartbeat > first.heartbeat
    assert second.token == first.token


def test_a_second_driver_is_refused_and_told_who_holds_the_sweep(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    holder = start(tmp_path, interval=30)
    assert first_line(holder) == "HELD"
    message = refused(tmp_path)
    held = holder_of(tmp_path)
    assert f"process {holder.pid} on {held.process.host} since {held.since}" in message
    assert "last sign of life 20" in message
    assert "wait for it or stop it" in message


def test_of_drivers_that_race_one_holds_the_sweep(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    assert codes([start(tmp_path) for _ in range(4)]) == [0, 2, 2, 2]
    assert list(tmp_path.iterdir()) == []


def test_of_drivers_that_race_for_a_dead_ones_sweep_one_takes_it(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    dead = start(tmp_path)
    assert first_line(dead) == "HELD"
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert codes([start(tmp_path) for _ in range(4)]) == [0, 2, 2, 2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [0, os.WNOWAIT], ids=["gone", "unseen by its parent"])
def test_a_killed_drivers_sweep_is_taken_over_at_once(
    tmp_path: Path, start: Callable[..., Any], left: int
) -> None:
    """A parent may never look, as the first process of a container without an init."""
    holder = start(tmp_path, interval=600)
    assert first_line(holder) == "HELD"
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | left)
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).process.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_id_is_no_sign_of_life(tmp_path: Path) -> None:
    write_lock(
        tmp_path / "lock.json", interval=600, started="1"
    )  # our own id, but of a process before us
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).token != "other"


@pytest.mark.parametrize("signalled", [None, PermissionError("not yours")])
def test_a_driver_that_proc_hides_lives_as_long_as_its_heart_beats(
    tmp_path: Path,
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    signalled: Exception | None,
) -> None:
    holder = start(tmp_path)
    assert first_line(holder) == "HELD"
    read = Path.read_text

    def hidden(path: Path, *how: Any) -> str:
        if path.is_relative_to(f"/proc/{holder.pid}"):
            raise FileNotFoundError(path)
        return read(path, *how)

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (holder.pid, 0)
        if signalled:
            raise signalled

    monkeypatch.setattr(Path, "read_text", hidden)
    monkeypatch.setattr("tune.folder.process.os.kill", kill)
    with pytest.raises(UserError, match="another driver"), SweepLock(tmp_path, INTERVAL):
        pass
    assert holder_of(tmp_path).process.pid == holder.pid


def test_of_drivers_that_took_over_one_after_the_other_the_last_holds_the_sweep(
    tmp_path: Path,
) -> None:
    write_lock(tmp_path / "lock.json", started="1")
    write_lock(tmp_path / "lock.other.heartbeat.json", started="1")
    write_lock(tmp_path / "lock.other.json", token="second", started="1")
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).process.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []
    write_lock(tmp_path / "lock.json", started="1")
    write_lock(tmp_path / "lock.other.json", token="second")
    message = refused(tmp_path)
    assert f"another driver runs it: process {os.getpid()} on" in message


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"space": "other boot"}])
def test_a_driver_elsewhere_holds_the_sweep_while_its_heart_beats(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    write_lock(tmp_path / "lock.json", age=5 * 60, interval=60, pid=2**22 + 1, **elsewhere)
    assert "another driver runs it" in refused(tmp_path)


def test_where_boot_and_namespace_are_not_shown_any_driver_may_be_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def hidden(path: Path, *how: Any) -> str:
        if path.name == "boot_id":
            raise FileNotFoundError(path)
        return read(path, *how)

    monkeypatch.setattr(Path, "read_text", hidden)
    write_lock(tmp_path / "lock.json", pid=2**22 + 1)
    assert "another driver runs it" in refused(tmp_path)


@pytest.mark.parametrize("age", [7 * INTERVAL, -3600])  # its clock was an hour ahead
def test_the_lock_of_a_driver_elsewhere_is_taken_over_when_its_heart_stands_still(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, age: float
) -> None:
    write_lock(tmp_path / "lock.json", age, host="other")
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).token != "other"
    assert [path.name for path in tmp_path.iterdir()] == ["lock.other.json"]
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path}: held by process {os.getpid()} on other since 2026")
    assert told.endswith("unless there is a newer one within 1 s")


@pytest.mark.parametrize("age", [1000, -1000])
def test_a_clock_that_is_off_does_not_make_its_driver_dead_where_a_beat_is_slow(
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


def test_a_driver_that_took_the_sweep_while_this_one_watched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(tmp_path / "lock.json", age=1000, host="dead")
    taken = tmp_path / "lock.other.json"
    monkeypatch.setattr(
        "tune.folder.lock.time.sleep", lambda _: write_lock(taken, token="faster", host="faster")
    )
    with pytest.raises(UserError, match="on faster"), SweepLock(tmp_path, INTERVAL):
        pass


def test_a_holder_that_ends_by_itself_as_its_sweep_is_taken_over_leaves_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock.json"
    write_lock(lock, age=1000, host="slow")
    monkeypatch.setattr("tune.folder.lock.time.sleep", lambda _: lock.unlink())
    with SweepLock(tmp_path):
        assert read(lock).process == Process.current()
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_driver_that_stood_still_stops_when_another_took_its_sweep(
    tmp_path: Path, start: Callable[..., Any], has_ended: bool
) -> None:
    suspended = start(tmp_path, interval=3)  # a busy machine stops it late, not in a beat
    assert first_line(suspended) == "HELD"
    suspended.send_signal(signal.SIGSTOP)
    taken = SweepFolder(tmp_path).lock_after(holder_of(tmp_path).token)
    write_lock(taken, interval=600, host="taker")  # as another machine would after the limit
    if has_ended:
        (tmp_path / "lock.json").unlink()
    suspended.send_signal(signal.SIGCONT)
    assert suspended.wait(timeout=30) == 2
    output = suspended.stdout.read()
    assert output.startswith("WOKEN")
    assert "was taken over by another driver" in output
    assert "on taker" in output
    assert (tmp_path / "lock.json").exists() is not has_ended


def test_a_driver_that_has_lost_its_sweep_says_so_also_at_its_end(tmp_path: Path) -> None:
    lock = SweepLock(tmp_path, interval=600).__enter__()
    write_lock(SweepFolder(tmp_path).lock_after(holder_of(tmp_path).token), host="taker")
    lock._renew()
    for told in (lock.check, lock.__exit__):
        with pytest.raises(UserError, match="on taker"):
            told()
    assert holder_of(tmp_path).token == "other"


def test_a_driver_that_stands_still_while_its_heart_beats_does_not_take_its_sweep_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = SweepLock(tmp_path, interval=600).__enter__()
    write = LocalStorage.write

    def late(storage: LocalStorage, name: str, content: bytes) -> None:
        write_lock(SweepFolder(tmp_path).lock_after(holder_of(tmp_path).token), host="taker")
        monkeypatch.undo()
        write(storage, name, content)

    monkeypatch.setattr(LocalStorage, "write", late)
    lock._renew()
    assert holder_of(tmp_path).token == "other"
    lock._renew()
    with pytest.raises(UserError, match="on taker"):
        lock.__exit__()


def test_a_driver_that_stood_still_asks_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = SweepLock(tmp_path, interval=600).__enter__()
    write_lock(SweepFolder(tmp_path).lock_after(holder_of(tmp_path).token), host="taker")
    lock.check()
    hour_later = time.time() + 3601
    monkeypatch.setattr("tune.folder.lock.time.time", lambda: hour_later)
    for told in (lock.check, lock.__exit__):
        with pytest.raises(UserError, match="on taker"):
            told()


def test_a_driver_that_stood_still_and_kept_its_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SweepLock(tmp_path, interval=600) as lock:
        hour_later = time.time() + 3601
        monkeypatch.setattr("tune.folder.lock.time.time", lambda: hour_later)
        lock.check()
        assert holder_of(tmp_path).heartbeat == hour_later
        monkeypatch.setattr(lock, "_renew", lambda: pytest.fail("asks once"))
        lock.check()


def test_a_lock_that_was_deleted_by_hand_is_put_back(tmp_path: Path) -> None:
    with SweepLock(tmp_path, interval=0.02):
        (tmp_path / "lock.json").unlink()
        deadline = time.monotonic() + 10
        while not (tmp_path / "lock.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert holder_of(tmp_path).process.pid == os.getpid()


def test_the_heart_beats_on_after_a_beat_that_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock, deadline = tmp_path / "lock.json", time.monotonic() + 10
    with SweepLock(tmp_path, interval=0.02):
        while "cannot be renewed" not in caplog.text and time.monotonic() < deadline:
            lock.write_text("{")
            time.sleep(0.01)
        lock.unlink()
        while not lock.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert holder_of(tmp_path).process.pid == os.getpid()


def test_a_lock_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("{")
    assert f"{tmp_path}/lock.json: is no lock" in refused(tmp_path)


def test_a_driver_whose_request_nfs_repeated_does_not_refuse_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.hardlink_to

    def repeated(made: Path, file: Path) -> None:
        link(made, file)
        link(made, file)

    monkeypatch.setattr(Path, "hardlink_to", repeated)
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).process.pid == os.getpid()
    write_lock(tmp_path / "lock.json", started="1")
    with SweepLock(tmp_path):
        assert holder_of(tmp_path).token != "other"
    assert list(tmp_path.iterdir()) == []


def test_files_are_created_whole_and_once_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    storage = LocalStorage(tmp_path)
    assert storage.create("a", b"first")
    assert not storage.create("a", b"second")
    assert snapshot(tmp_path) == {"a": b"first"}
