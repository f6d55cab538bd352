"""A disk and object stores keep the same promises."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
from builders import measurement, trial
from object_store import failing_server
from small_disk import fill, small_disk

from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import TrialStatus
from trainables.storage import object_storage
from trainables.storage.base_storage import Storage
from trainables.storage.local_storage import LocalStorage
from trainables.storage.object_storage import ObjectStorage
from trainables.storage.storage import Location, join, open_storage, parse_location
from trainables.workers.trial_outcome import verdict
from tune.folder.lock import SweepLock
from tune.folder.sweep_folder import check_sweep_folder


@pytest.fixture
def storage(location: Location) -> Storage:
    return open_storage(location)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        ("sweeps/a", Path("sweeps/a")),
        ("~/a", Path.home() / "a"),
        ("s3:bucket", Path("s3:bucket")),
    ],
)
def test_location_is_a_path_or_an_address(text: str, parsed: Location) -> None:
    assert parse_location(text) == parsed
    assert join(parsed, "b", "c") == (
        f"{parsed}/b/c" if isinstance(parsed, str) else parsed / "b" / "c"
    )


@pytest.mark.parametrize(
    ("address", "endpoint", "fact"),
    [
        ("s3://bucket/a b", "", "%20 for a space"),
        ("s3://bucket/a", "store:9000", "AWS_ENDPOINT_URL: "),
        ("s3://bucket/a", "http://store:9000/minio", "AWS_ENDPOINT_URL: "),
        ("s3://AKIA:hid/den@bucket/a", "", "AWS_SECRET_ACCESS_KEY"),
        ("gs://bucket/a?endpoint_override=hidden", "", "AWS_SECRET_ACCESS_KEY"),
        ("gs://bucket/runs#2", "", "#"),  # all that follows would be one place
    ],
)
def test_unusable_addresses_are_refused_and_keys_not_shown(
    address: str, endpoint: str, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError) as caught:
        open_storage(address)
    assert fact in str(caught.value)
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "lasts"),
    [(503, "SlowDown", False), (429, "TooManyRequests", False), (403, "AccessDenied", True)],
)
def test_trial_fails_where_access_is_denied_and_is_retried_where_the_store_is_out(
    status: int, code: str, lasts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "_ATTEMPTS", 2)
    asked: list[tuple[str, str]] = []
    with (
        failing_server(60.0, status, code, asked) as address,
        pytest.raises(OSError, match="AWS Error") as caught,
    ):
        open_storage(address).write("a", b"1")
    if lasts:
        assert len(asked) == len(set(asked)), "asked again"
        assert verdict(trial(0).config, caught.value).status is TrialStatus.FAILED
    else:
        with pytest.raises(OSError, match="AWS Error"):  # as where its process is lost
            verdict(trial(0).config, caught.value)


def test_what_is_written_is_read(storage: Storage) -> None:
    assert not storage.exists("a/b.json")
    with pytest.raises(FileNotFoundError):
        storage.read("a/b.json")
    storage.write("a/b.json", b"first, and long")
    storage.write("a/b.json", b"second")
    storage.write("a/c.json", b"")
    assert storage.exists("a/b.json")
    assert not storage.exists("a")
    assert storage.read_all(["a/c.json", "none", "a/b.json"]) == [b"", None, b"second"]
    assert storage.children("a") == ["b.json", "c.json"]
    assert storage.children("") == ["a"]
    assert storage.children("none") == []
    parts = bytes(range(256)) * 36_000  # Google's client sends what is as large in two
    storage.write("large.gz", parts)  # pyarrow goes by the ending by default
    assert storage.read("large.gz") == parts


def test_files_and_folders_are_removed(storage: Storage) -> None:
    for name in ("a/b", "a/c/d", "e"):
        storage.write(name, b"1")
    storage.remove("a/b")
    storage.remove("none")
    assert storage.children("a") == ["c"]
    storage.remove("a")
    assert storage.children("") == ["e"]


def test_log_grows_line_by_line_over_drivers(location: Location) -> None:
    for driver in range(2):
        storage = open_storage(location)
        for line in range(3):
            storage.append("logs/x.jsonl", b"%d %d\n" % (driver, line))
    wanted = b"".join(b"%d %d\n" % (d, line) for d in range(2) for line in range(3))
    assert storage.read_log("logs/x.jsonl") == wanted
    storage.close_log("logs/x.jsonl")
    assert storage.read_log("logs/x.jsonl") == wanted
    storage.append("logs/x.jsonl", b"more\n")
    assert open_storage(location).read_logs(["none", "logs/x.jsonl"]) == [b"", wanted + b"more\n"]
    storage.write_log("logs/x.jsonl", b"other\n")
    assert open_storage(location).read_log("logs/x.jsonl") == b"other\n"


def test_of_racing_creators_one_succeeds(storage: Storage) -> None:
    start = threading.Barrier(4)
    won: list[bytes] = []

    def create(content: bytes) -> None:
        start.wait()
        if storage.create("lock", content):
            won.append(content)

    threads = [threading.Thread(target=create, args=(b"%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [storage.read("lock")]
    assert not storage.create("lock", b"late")
    assert [storage.read("lock")] == won


def test_disk_without_hard_links_creates_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    storage = LocalStorage(tmp_path)
    assert storage.create("lock", b"first")
    assert not storage.create("lock", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"lock": b"first"}


def test_folders_are_published_and_fetched(
    storage: Storage, location: Location, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    (folder / "inside").mkdir(parents=True)
    (folder / "manifest.json").write_text("1")
    (folder / "inside" / "tensor").write_bytes(bytes(range(256)) * 1000)
    storage.publish(folder / "manifest.json", "attempt/log")
    storage.publish(folder, "attempt/x", last="manifest.json")
    assert storage.children("attempt") == ["log", "x"]
    open_storage(join(location, "base")).publish(folder, "")
    assert storage.children("base") == ["inside", "manifest.json"]
    storage.fetch("attempt/x", tmp_path / "back")
    assert (tmp_path / "back" / "manifest.json").read_text() == "1"
    assert (tmp_path / "back" / "inside" / "tensor").read_bytes() == bytes(range(256)) * 1000


def test_reader_of_a_log_that_is_being_closed_misses_no_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, reader = open_storage(f"{bucket}/read"), open_storage(f"{bucket}/read")
    for line in (b"1\n", b"2\n"):
        driver.append("metrics.jsonl", line)
    list_parts = ObjectStorage._parts

    def list_then_close(storage: ObjectStorage, log: str) -> list[str]:
        parts = list_parts(storage, log)
        if storage is reader and log == "metrics.jsonl":
            driver.close_log(log)
        return parts

    monkeypatch.setattr(ObjectStorage, "_parts", list_then_close)
    assert reader.read_logs(["none", "metrics.jsonl"]) == [b"", b"1\n2\n"]


def test_crash_while_a_log_is_closed_loses_and_doubles_nothing(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(f"{bucket}/crash")
    for attempt, step in ((1, 1), (1, 5), (1, 9), (2, 5), (2, 7)):
        ledger.append(0, measurement(step, attempt=attempt))
    wanted = ledger.measurements(0)

    def crash(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(ObjectStorage, "remove", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.write_trial(trial())
    monkeypatch.undo()
    again = Ledger(f"{bucket}/crash")
    assert again.measurements(0) == wanted
    again.append(0, measurement(8, attempt=3))
    assert Ledger(f"{bucket}/crash").measurements(0) == [*wanted, measurement(8, attempt=3)]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder to be published, with its manifest."""
    folder = tmp_path / "made"
    folder.mkdir()
    for name in ("a", "files.json", "z"):
        (folder / name).write_text(name)
    return folder


def test_manifest_is_uploaded_last(
    bucket: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, order = ObjectStorage(f"{bucket}/last"), list[str]()
    upload = storage._upload

    def note(file: Path, name: str) -> Any:
        upload(file, name)
        order.append(file.name)

    monkeypatch.setattr(storage, "_upload", note)
    storage.publish(made, "x", last="files.json")
    assert order[-1] == "files.json"
    assert sorted(order) == ["a", "files.json", "z"]


@pytest.mark.parametrize("room", [0, 4096])
def test_full_disk_gets_no_part_of_a_manifest(tmp_path: Path, made: Path, room: int) -> None:
    (made / "files.json").write_bytes(bytes(10_000))
    with small_disk(tmp_path / "disk", "1m") as disk:
        storage = LocalStorage(disk)
        storage.publish(made / "a", "x/a")
        storage.publish(made / "z", "x/z")
        filler = fill(disk, leave=room)
        with pytest.raises(OSError, match="No space left"):
            storage.publish(made, "x", last="files.json")
        assert "files.json" not in storage.children("x")
        filler.unlink()
        storage.publish(made, "x", last="files.json")
        assert storage.children("x") == ["a", "files.json", "z"]


def test_lock_in_an_object_store_refuses_a_second_driver(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path))
    location = f"{bucket}/locked/mine"
    assert check_sweep_folder(location) is True
    with SweepLock(location):
        with pytest.raises(UserError, match=f"^{location}: another driver"), SweepLock(location):
            pass
        assert open_storage(location).children("") == ["lock.json"]
        assert check_sweep_folder(location) is False
    assert open_storage(location).children("") == []
    with (
        pytest.raises(UserError, match="cannot write to s3://no-such-bucket/sweep"),
        SweepLock("s3://no-such-bucket/sweep"),
    ):
        pass


def test_paths_have_a_name_in_the_storage_and_a_place_for_workers(location: Location) -> None:
    folder = SweepFolder(location)
    assert folder.name(folder.metrics(7)) == "trials/0007/metrics.jsonl"
    assert folder.absolute(folder.attempt(7, 2)) == f"{location}/trials/0007/attempt_2"
