"""A disk and an object store keep the same promises."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from builders import measurement, sweep_config, sweep_record, trial
from google_store import google_store
from object_store import failing_server
from small_disk import fill, small_disk

from analysis.__main__ import main as analysis_main
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import TrialStatus
from trainables.storage import object_storage
from trainables.storage.object_storage import ObjectStorage, is_of_store
from trainables.storage.storage import (
    LocalStorage,
    Location,
    Storage,
    is_address,
    join,
    open_storage,
    parse_location,
)
from trainables.workers.node import check_sees
from trainables.workers.trial_outcome import verdict
from tune import cli as command_line
from tune.folder.lock import SweepLock
from tune.folder.sweep_folder import check_sweep_folder


@pytest.fixture
def storage(location: Location, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(object_storage, "_SETTLING_S", 0.2)
    return open_storage(location)


def test_the_kind_follows_from_the_location(tmp_path: Path, bucket: str) -> None:
    assert isinstance(open_storage(tmp_path), LocalStorage)
    assert isinstance(open_storage(f"{bucket}/at:9@noon"), ObjectStorage)  # holds no keys


def test_addresses_and_paths() -> None:
    for store in ("s3", "gs", "gcs", "abfs", "abfss", "hdfs"):
        assert parse_location(f"{store}://bucket/a/") == f"{store}://bucket/a"
    assert parse_location("sweeps/a") == Path("sweeps/a")
    assert parse_location("~/a") == Path.home() / "a"
    assert is_address("gs://bucket")
    assert not is_address("/tmp/a://b")  # noqa: S108
    assert join("s3://bucket", "a", "b") == "s3://bucket/a/b"
    assert join(Path("a"), "b", "c") == Path("a/b/c")


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3:///",
        "s3:///sweeps",
        "file:///data/sweeps",
        "s3:/bucket/a",
        "S3://bucket/a",
        "s3a://bucket/a",
        "https://bucket.s3.amazonaws.com/a",
    ],
)
def test_what_is_no_address_of_a_bucket_is_no_folder_either(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep was written to a local folder `s3:`, or pyarrow's parser was quoted."""
    told = f"must be a folder's path or the address of an object store, got {address}; write one"
    for main, arguments in (
        (command_line.main, ["quickstart", "--dry-run", "--output-dir", address]),
        (analysis_main, ["report", address]),
    ):
        assert main(arguments) == 2
        assert told in capsys.readouterr().err


def test_a_name_that_only_looks_like_an_address_is_a_folder() -> None:
    assert parse_location("s3:bucket") == Path("s3:bucket")
    assert parse_location("my_s3:/a") == Path("my_s3:/a")


def test_an_address_that_pyarrow_cannot_read_says_how_to_write_it() -> None:
    with pytest.raises(UserError, match=r"is no address of a store: .*; write .*%20 for a space"):
        open_storage("s3://bucket/a b")


@pytest.mark.parametrize(
    "endpoint", ["store:9000", "localhost:9000", "//store:9000", "http://store:9000/minio"]
)
def test_an_endpoint_that_would_not_be_asked_is_refused(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amazon was asked in place of a store whose address had no http://."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL: must be the address of a store, with"):
        open_storage("s3://bucket/a")


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:hidden@bucket/a",
        "s3://AKIA:hid/den@bucket/a",
        "s3://bucket/a?access_key=AKIA&secret_key=hidden",
        "gs://bucket/a?endpoint_override=hidden",
    ],
)
def test_keys_belong_in_no_address(address: str) -> None:
    with pytest.raises(UserError, match="must hold neither keys") as caught:
        open_storage(address)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_no_address_has_a_number_sign_behind_which_all_would_be_one_place(store: str) -> None:
    with pytest.raises(UserError, match=r"must hold neither keys nor a \? or #; take them out"):
        open_storage(f"{store}://bucket/runs#2/mine/trials/0003/attempt_1")


def test_a_store_that_fails_for_some_seconds_is_asked_again() -> None:
    with failing_server(8.0, 503, "SlowDown") as address:
        storage = open_storage(address)
        storage.write("a", b"1")
        assert storage.read("a") == b"1"


@pytest.mark.parametrize(("status", "code"), [(429, "TooManyRequests"), (520, "Unknown")])
def test_a_store_that_fails_in_words_of_its_own_is_asked_again_to_take_an_object(
    status: int, code: str, tmp_path: Path
) -> None:
    """The AWS SDK takes these answers for final."""
    (file := tmp_path / "b").write_bytes(b"2")
    for put in (lambda to: to.write("b", b"2"), lambda to: to.publish(file, "b")):
        with failing_server(1.0, status, code, asked := []) as address:
            put(open_storage(address))
            assert open_storage(address).read("b") == b"2"
            assert 3 < len(asked) < 10


def test_a_store_that_the_sdk_itself_has_asked_for_long_is_not_asked_for_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = 0.0, []

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def put() -> None:
        asked.append(now)
        pass_time(204.0)  # as the SDK takes
        raise OSError("AWS Error UNKNOWN (HTTP status 503) during PutObject operation")

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", pass_time)
    with pytest.raises(OSError, match="503"):
        object_storage._put_again(put)
    assert len(asked) == 2
    assert now < 7 * 60


def test_google_credentials_that_are_not_there_are_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(OSError, match="Cannot open credentials file") as caught:
        open_storage("gs://bucket/sweeps").exists("a")
    assert is_of_store(caught.value)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (502, "BadGateway"),
        (429, "TooManyRequests"),
        (408, "RequestTimeout"),
        (524, "Timeout"),
    ],
)
def test_a_trial_whose_store_is_out_for_long_ends_like_one_that_lost_its_process(
    status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it goes on in its next attempt, but not for ever if it comes no further."""
    monkeypatch.setattr(object_storage, "_ATTEMPTS", 2)
    with failing_server(60.0, status, code) as address:
        with pytest.raises(OSError) as caught:
            open_storage(address).write("a", b"1")
        with pytest.raises(OSError, match="AWS Error") as at_the_beginning:
            check_sees(address, "base.json")
    for error in (caught.value, at_the_beginning.value):
        with pytest.raises(OSError, match="AWS Error") as raised:
            verdict(trial(0).config, error)
        assert raised.value is error


def test_a_store_that_denies_access_says_so_at_once() -> None:
    asked: list[tuple[str, str]] = []
    with (
        failing_server(60.0, 403, "AccessDenied", asked) as address,
        pytest.raises(OSError, match="ACCESS_DENIED") as caught,
    ):
        open_storage(address).write("a", b"1")
    assert len(asked) == len(set(asked)), "asked again"
    assert verdict(trial(0).config, caught.value).status is TrialStatus.FAILED


def test_what_is_written_is_read(storage: Storage) -> None:
    assert not storage.exists("a/b.json")
    with pytest.raises(FileNotFoundError):
        storage.read("a/b.json")
    storage.write("a/b.json", b"first, and long")
    storage.write("a/b.json", b"second")
    storage.write("a/c.json", b"")
    assert storage.exists("a/b.json")
    assert not storage.exists("a")
    assert storage.read("a/b.json") == b"second"
    assert storage.read_all(["a/c.json", "none", "a/b.json"]) == [b"", None, b"second"]
    assert storage.children("a") == ["b.json", "c.json"]
    assert storage.children("") == ["a"]
    assert storage.children("none") == []
    parts = bytes(range(256)) * 36_000  # Google's client sends what is as large in two
    storage.write("large", parts)
    assert storage.read("large") == parts
    storage.write("rows.jsonl.gz", b"as it is")  # pyarrow goes by the name, unless told otherwise
    assert storage.read("rows.jsonl.gz") == b"as it is"


def test_files_and_folders_are_removed(storage: Storage) -> None:
    for name in ("a/b", "a/c/d", "e"):
        storage.write(name, b"1")
    storage.remove("a/b")
    storage.remove("none")
    assert storage.children("a") == ["c"]
    storage.remove("a")
    assert storage.children("") == ["e"]


def test_a_log_grows_line_by_line_over_drivers(location: Location) -> None:
    for driver in range(3):
        storage = open_storage(location)
        for line in range(5):
            storage.append("logs/x.jsonl", b"%d %d\n" % (driver, line))
    wanted = b"".join(b"%d %d\n" % (d, line) for d in range(3) for line in range(5))
    assert storage.read_log("logs/x.jsonl") == wanted
    storage.close_log("logs/x.jsonl")
    assert storage.read_log("logs/x.jsonl") == wanted
    storage.append("logs/x.jsonl", b"more\n")
    assert open_storage(location).read_log("logs/x.jsonl") == wanted + b"more\n"
    assert storage.read_logs(["none", "logs/x.jsonl"]) == [b"", wanted + b"more\n"]
    storage.write_log("logs/x.jsonl", b"other\n")
    assert open_storage(location).read_log("logs/x.jsonl") == b"other\n"


def test_a_closed_log_is_one_object(bucket: str) -> None:
    storage = open_storage(f"{bucket}/closed")
    for line in (b"1\n", b"2\n"):
        storage.append("metrics.jsonl", line)
    assert storage.children("metrics") == [f"0000000{n}.jsonl" for n in (1, 2)]
    for _ in range(2):
        storage.close_log("metrics.jsonl")
        assert storage.children("metrics") == ["00000003.jsonl"]


def test_a_log_that_another_closes_while_it_is_read_lacks_no_line(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a driver does at a trial's end, while `watch` or a report reads."""
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


def test_a_crash_while_a_log_is_closed_loses_and_doubles_nothing(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(f"{bucket}/crash")
    for attempt, step in ((1, 1), (1, 5), (1, 9), (2, 5), (2, 7)):
        ledger.append(0, measurement(step, attempt=attempt))
    wanted = ledger.measurements(0)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ObjectStorage, "remove", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.write_trial(trial())
    monkeypatch.undo()
    again = Ledger(f"{bucket}/crash")
    assert len(again.storage.children("trials/0000/metrics")) == 6
    assert again.measurements(0) == wanted
    again.append(0, measurement(8, attempt=3))
    assert Ledger(f"{bucket}/crash").measurements(0) == [*wanted, measurement(8, attempt=3)]


def test_an_interrupted_write_leaves_what_was_there_or_what_is_new(storage: Storage) -> None:
    is_writing = False

    def interrupt(*_: object) -> None:
        if is_writing:  # else it came late, as a signal may that another thread was given
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for tenths in range(1, 80):
            storage.write("trial.json", b"old")
            with suppress(KeyboardInterrupt):
                is_writing = True
                signal.setitimer(signal.ITIMER_REAL, tenths / 10_000)
                try:
                    storage.write("trial.json", b"new")
                finally:
                    is_writing = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
            assert storage.read("trial.json") in (b"old", b"new")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_at_any_instruction_ends_what_waits_for_a_store(bucket: str) -> None:
    storage = open_storage(f"{bucket}/interrupted")
    storage.write("a", b"old")

    def late(*_: object) -> NoReturn:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    try:
        for call in (lambda: storage.write("a", b"new"), lambda: storage.read_all(["a", "b"])):
            instruction = 1
            while _is_interrupted_at(instruction, call):
                assert storage.read("a") in (b"old", b"new")
                instruction += 1
            assert instruction > 100
    finally:
        signal.signal(signal.SIGALRM, before)


def _is_interrupted_at(instruction: int, call: Callable[[], object]) -> bool:
    """Whether the call has as many instructions, of which this is interrupted."""
    instructions, came = count(1), False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal came
        frame.f_trace_opcodes = True
        if event == "opcode" and next(instructions) == instruction:
            came = True  # and is ignored where it meets what collects garbage
            raise KeyboardInterrupt
        return trace

    signal.setitimer(signal.ITIMER_REAL, 60)
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return came


def test_a_sweep_copied_from_a_store_to_a_disk_and_back_keeps_its_logs(
    bucket: str, tmp_path: Path
) -> None:
    log = "trials/0000/metrics.jsonl"
    of_store, here = open_storage(f"{bucket}/copied"), LocalStorage(tmp_path / "copy")
    for line in (b"1\n", b"2\n"):
        of_store.append(log, line)
    of_store.fetch("", here.root)
    assert here.read_logs([log, "none"]) == [b"1\n2\n", b""]
    here.append(log, b"3\n")
    assert here.read_log(log) == b"1\n2\n3\n"
    back = open_storage(f"{bucket}/back")
    back.publish(here.root, "")
    assert back.read_log(log) == b"1\n2\n3\n"
    back.append(log, b"4\n")
    assert open_storage(f"{bucket}/back").read_log(log) == b"1\n2\n3\n4\n"
    back.fetch("", tmp_path / "again")
    again = LocalStorage(tmp_path / "again")
    assert again.read_log(log) == b"1\n2\n3\n4\n"
    again.write_log(log, b"1\n")
    assert again.children("trials/0000") == ["metrics.jsonl"]
    other = open_storage(f"{bucket}/back_too")
    other.publish(here.root, "")
    other.write_log(log, b"1\n")
    assert other.read_log(log) == b"1\n"


def test_a_file_is_created_once(storage: Storage) -> None:
    assert storage.create("lock", b"first")
    assert not storage.create("lock", b"second")
    assert storage.read("lock") == b"first"
    assert storage.children("") == ["lock"]


def test_where_no_links_can_be_made_a_file_is_created_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    storage = LocalStorage(tmp_path)
    assert storage.create("lock", b"first")
    assert not storage.create("lock", b"second")
    assert storage.read("lock") == b"first"
    assert storage.children("") == ["lock"]


def test_of_those_who_create_a_file_at_once_one_succeeds(storage: Storage) -> None:
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


def test_an_address_of_s3_alone_wins_over_that_of_all_services(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://store:9000")
    assert object_storage._endpoint() == {"endpoint_override": "store:9000", "scheme": "https"}


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
    (tmp_path / "back").mkdir()
    storage.fetch("attempt/x", tmp_path / "back")
    assert (tmp_path / "back" / "manifest.json").read_text() == "1"
    assert (tmp_path / "back" / "inside" / "tensor").read_bytes() == bytes(range(256)) * 1000


def test_folders_that_google_does_not_list_are_fetched(tmp_path: Path) -> None:
    with google_store({"a": b"1", "data/train/part": b"22", "other": b""}) as address:
        open_storage(address).fetch("", tmp_path / "all")
        open_storage(address).fetch("data", tmp_path / "data")
    assert (tmp_path / "all" / "a").read_bytes() == b"1"
    for back in ("all/data", "data"):
        assert (tmp_path / back / "train" / "part").read_bytes() == b"22"


def test_folders_that_google_does_not_list_are_found_and_removed() -> None:
    with google_store(
        {"a": b"1", "steps/1/x": b"22", "steps/1/y": b"", "steps/2/x": b""}
    ) as address:
        storage = open_storage(address)
        assert storage.children("") == ["a", "steps"]
        assert storage.children("steps") == ["1", "2"]
        assert not storage.exists("steps")
        storage.remove("steps/1")
        assert storage.children("steps") == ["2"]
        storage.remove("steps")
        assert storage.children("") == ["a"]
        assert storage.children("steps") == []


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder to be published, with its manifest."""
    folder = tmp_path / "made"
    folder.mkdir()
    for name in ("a", "files.json", "z"):
        (folder / name).write_text(name)
    return folder


def test_the_manifest_is_uploaded_last(
    bucket: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, order = ObjectStorage(f"{bucket}/last"), list[str]()
    upload = storage._upload
    monkeypatch.setattr(
        storage, "_upload", lambda file, name: (upload(file, name), order.append(file.name))
    )
    storage.publish(made, "x", last="files.json")
    assert order[-1] == "files.json"
    assert sorted(order) == ["a", "files.json", "z"]


def test_a_folder_that_cannot_be_copied_whole_gets_no_manifest(tmp_path: Path, made: Path) -> None:
    (made / "b").symlink_to("nowhere")
    storage = LocalStorage(tmp_path / "sweep")
    with pytest.raises(OSError, match="made/b"):
        storage.publish(made, "x", last="files.json")
    assert storage.children("x") == ["a", "z"]
    (made / "b").unlink()
    storage.publish(made, "x", last="files.json")
    assert storage.children("x") == ["a", "files.json", "z"]


@pytest.mark.parametrize("room", [0, 4096])
def test_a_full_disk_gets_no_part_of_a_manifest(tmp_path: Path, made: Path, room: int) -> None:
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


def test_a_lock_in_an_object_store_keeps_a_second_driver_off(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path))
    monkeypatch.setattr(object_storage, "_SETTLING_S", 0.1)
    location = f"{bucket}/locked/mine"
    assert check_sweep_folder(location) is True
    with SweepLock(location):
        with pytest.raises(UserError, match=f"^{location}: another driver"), SweepLock(location):
            pass
        assert open_storage(location).children("") == ["lock.json"]
        assert check_sweep_folder(location) is False
    assert open_storage(location).children("") == []


def test_the_whole_of_a_sweep_is_not_listed_to_see_that_it_may_go_on(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Google's store that would list the files of all its trials."""
    Ledger(location).write_sweep(sweep_record(sweep_config()))
    kind, listed = type(open_storage(location)), list[str]()
    children = kind.children

    def listing(storage: Storage, name: str) -> list[str]:
        listed.append(name)
        return children(storage, name)

    monkeypatch.setattr(kind, "children", listing)
    assert check_sweep_folder(location) is False
    assert "trials" in listed
    assert "" not in listed


def test_a_bucket_that_is_not_there_is_named(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught, SweepLock("s3://no-such-bucket/sweep"):
        pass
    assert "cannot write to s3://no-such-bucket/sweep" in str(caught.value)


def test_what_a_path_is_called_where_it_lies(location: Location) -> None:
    folder = SweepFolder(location)
    assert folder.name(folder.metrics(7)) == "trials/0007/metrics.jsonl"
    assert folder.absolute(folder.attempt(7, 2)) == f"{location}/trials/0007/attempt_2"
