"""What workers write reaches an object store, and what they need comes from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import save_checkpoint, trial, trial_config

from trainables.config import TrialConfig
from trainables.storage.locations import node_cache
from trainables.storage.object_storage import ObjectStorage
from trainables.storage.storage import open_storage
from trainables.training.attempt_folder import (
    beside_workers,
    clear_node,
    on_this_node,
    publish_checkpoints,
    publish_items,
    publish_rest,
    publish_results,
    publish_worker,
)
from trainables.training.checkpoint_files import checkpoint_dir, checkpoints, is_valid, newest_valid
from tune.folder.disk_budget import PublishedCheckpoints


@pytest.fixture
def config(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    """The third attempt of a trial whose sweep lies in the store."""
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path / "node"))
    sweep = f"{bucket}/{tmp_path.name}"
    open_storage(sweep).write("base/base.json", b"{}")
    open_storage(sweep).write("base/items.jsonl", b"items")
    attempts = [f"{sweep}/trials/0000/attempt_{number}" for number in (1, 2, 3)]
    return trial_config(
        base_dir=f"{sweep}/base", output_dir=attempts[-1], earlier_attempts=attempts[:-1]
    )


def publish_checkpoint(attempt: str, step: int, here: Path) -> None:
    open_storage(attempt).publish(save_checkpoint(here, step), f"checkpoints/step_{step:08d}")


def test_on_a_disk_nothing_is_copied(tmp_path: Path) -> None:
    config = trial_config(output_dir=str(tmp_path / "attempt_1"))
    assert on_this_node(config) is config
    save_checkpoint(Path(config.output_dir), 4)
    for publish in (publish_checkpoints, publish_items, publish_rest):
        publish(config)
    assert [path.name for path in tmp_path.iterdir()] == ["attempt_1"]


def test_a_worker_writes_to_its_node_and_reads_the_base_there(config: TrialConfig) -> None:
    here = on_this_node(config)
    assert here.published_dir == config.output_dir
    assert Path(here.output_dir).is_relative_to(node_cache())
    assert (Path(here.base_dir) / "items.jsonl").read_bytes() == b"items"
    assert here.earlier_attempts == ()


def test_the_base_is_fetched_once_until_it_is_made_anew(config: TrialConfig) -> None:
    first = Path(on_this_node(config).base_dir)
    (first / "items.jsonl").write_bytes(b"the node's own")
    again = Path(on_this_node(config).base_dir)
    assert (again / "items.jsonl").read_bytes() == b"the node's own"
    open_storage(config.base_dir).write("base.json", b'{"other": 1}')
    other = Path(on_this_node(config).base_dir)
    assert (other / "items.jsonl").read_bytes() == b"items"


def test_the_newest_valid_checkpoint_of_earlier_attempts_is_fetched(
    config: TrialConfig, tmp_path: Path
) -> None:
    first, second = config.earlier_attempts
    publish_checkpoint(first, 8, tmp_path / "1")
    publish_checkpoint(second, 12, tmp_path / "2")
    publish_checkpoint(second, 16, tmp_path / "2")
    open_storage(second).remove("checkpoints/step_00000016/files.json")  # cut off while it came
    here = on_this_node(config)
    found = newest_valid([Path(folder) for folder in here.earlier_attempts])
    assert found is not None
    assert found.name == "step_00000012"
    # The one before it, where that one is damaged in the store.
    open_storage(second).write("checkpoints/step_00000012/training.safetensors", b"bad")
    (found / "files.json").unlink()
    found = newest_valid([Path(folder) for folder in on_this_node(config).earlier_attempts])
    assert found is not None
    assert found.name == "step_00000008"


def test_of_checkpoints_after_the_same_step_that_of_the_tenth_attempt_comes_before_the_ninth(
    config: TrialConfig, tmp_path: Path
) -> None:
    trial_folder, _, _ = config.output_dir.rpartition("/")
    attempts = [f"{trial_folder}/attempt_{number}" for number in (9, 10, 11)]
    for attempt in attempts[:-1]:
        publish_checkpoint(attempt, 8, tmp_path / attempt[-2:])
    changes = {"earlier_attempts": tuple(attempts[:-1]), "output_dir": attempts[-1]}
    here = on_this_node(config.model_copy(update=changes))
    found = newest_valid([Path(folder) for folder in here.earlier_attempts])
    assert found is not None
    assert found.parents[1].name == "attempt_10"


def test_what_the_attempt_itself_has_published_is_fetched_too(
    config: TrialConfig, tmp_path: Path
) -> None:
    """Where memory ran out its workers go on in smaller batches, and not all have made it."""
    publish_checkpoint(config.earlier_attempts[1], 12, tmp_path / "2")
    publish_checkpoint(config.output_dir, 16, tmp_path / "3")
    found = newest_valid([Path(folder) for folder in on_this_node(config).earlier_attempts])
    assert found is not None
    assert found.name == "step_00000016"


def test_a_checkpoint_whose_upload_was_cut_off_is_not_gone_on_from_in_a_group(
    config: TrialConfig, tmp_path: Path
) -> None:
    """No other node could fetch it; a trial by itself goes on from it, and completes it."""
    publish_checkpoint(config.output_dir, 12, tmp_path / "3")
    alone = on_this_node(config)
    for step in (12, 16):
        save_checkpoint(Path(alone.output_dir), step)
    storage = open_storage(config.output_dir)
    storage.write("checkpoints/step_00000016/training.safetensors", b"half")
    assert newest_valid(on_this_node(config).attempt_dirs) == checkpoint_dir(
        Path(alone.output_dir), 16
    )
    group = on_this_node(config.model_copy(update={"workers": 2}))
    assert [path.name for path in checkpoints(group.attempt_dirs)] == ["step_00000012"] * 2
    save_checkpoint(Path(alone.output_dir), 16)
    publish_checkpoints(alone)
    assert storage.exists("checkpoints/step_00000016/files.json")
    again = on_this_node(config.model_copy(update={"workers": 2}))
    assert newest_valid(again.attempt_dirs) == checkpoint_dir(Path(again.output_dir), 16)


def test_what_says_that_a_folder_is_whole_is_uploaded_last(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dies in the middle of an upload leaves nothing that seems whole."""
    upload, uploaded = ObjectStorage._upload, []

    def noted(storage: ObjectStorage, file: Path, name: str) -> None:
        uploaded.append(name)
        upload(storage, file, name)

    here = on_this_node(config)
    monkeypatch.setattr(ObjectStorage, "_upload", noted)
    save_checkpoint(Path(here.output_dir), 4)
    publish_checkpoints(here)
    assert uploaded[-1] == "checkpoints/step_00000004/files.json"
    best = Path(here.output_dir) / "best"
    best.mkdir()
    for name in ("evaluation.json", "weights"):
        (best / name).touch()
    publish_results(here)
    assert uploaded[-1] == "best/evaluation.json"


def test_who_only_waits_fetches_nothing_and_clears_nothing_of_the_others(
    config: TrialConfig, tmp_path: Path
) -> None:
    publish_checkpoint(config.earlier_attempts[1], 12, tmp_path / "2")
    waiting = beside_workers(config)
    assert waiting.published_dir == config.output_dir
    assert not (tmp_path / "node").exists()
    training = on_this_node(config)
    for each in (waiting, training):
        Path(each.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(waiting.output_dir) / "trial.log").write_text("waits")
    publish_rest(waiting)
    assert open_storage(config.output_dir).read("trial.log") == b"waits"
    assert not Path(waiting.output_dir).exists()
    assert Path(training.output_dir).exists()
    assert newest_valid([Path(folder) for folder in training.earlier_attempts])


def test_the_first_worker_of_a_group_publishes_weights_and_best(config: TrialConfig) -> None:
    here = on_this_node(config)
    attempt = Path(here.output_dir)
    for name in ("weights/adapter", "best/adapter", "worker_0.log", "worker_1.log"):
        (attempt / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt / name).write_text(name)
    publish_worker(here, 1)
    assert open_storage(config.output_dir).children("") == ["worker_1.log"]
    publish_worker(here, 0, is_stopped=True)
    assert open_storage(config.output_dir).children("") == ["worker_0.log", "worker_1.log"]
    publish_worker(here, 0)
    wanted = ["best", "weights", "worker_0.log", "worker_1.log"]
    assert open_storage(config.output_dir).children("") == wanted


def test_published_checkpoints_follow_those_of_the_attempt(config: TrialConfig) -> None:
    here = on_this_node(config)
    store = open_storage(config.output_dir)
    attempt = Path(here.output_dir)
    for step in (4, 8):
        save_checkpoint(attempt, step)
        publish_checkpoints(here)
    assert store.children("checkpoints") == ["step_00000004", "step_00000008"]
    for file in checkpoint_dir(attempt, 4).iterdir():
        file.unlink()
    checkpoint_dir(attempt, 4).rmdir()
    (attempt / "checkpoints" / ".step_00000012").mkdir()  # half-written
    publish_checkpoints(here)
    assert store.children("checkpoints") == ["step_00000008"]
    store.fetch("checkpoints/step_00000008", attempt / "back")
    assert is_valid(attempt / "back")


@pytest.mark.parametrize("named", [1, 3, None])
def test_of_what_a_trained_trial_has_published_the_named_best_weights_stay(
    config: TrialConfig, named: int | None
) -> None:
    attempts = (*config.earlier_attempts, config.output_dir)
    for attempt in attempts:
        for name in ("best/adapter", "checkpoints/step_00000004/files.json", "trial.log"):
            open_storage(attempt).write(name, b"")
    address = None if named is None else f"{attempts[named - 1]}/best"
    record = trial(
        output_dir=config.output_dir,
        earlier_attempts=config.earlier_attempts,
        best_weights_dir=address,
    )
    PublishedCheckpoints().trial_ended(record)
    left = [open_storage(attempt).children("") for attempt in attempts]
    assert left == [
        ["best", "trial.log"] if number == named else ["trial.log"] for number in (1, 2, 3)
    ]


def test_items_weights_and_log_are_published_and_the_node_is_cleared(config: TrialConfig) -> None:
    here = on_this_node(config)
    store = open_storage(config.output_dir)
    attempt = Path(here.output_dir)
    being_written = attempt / "items" / ".step_2.jsonl.77"
    for name in ("items/step_1.jsonl", "weights/adapter", "trial.log", "workers/x"):
        (attempt / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt / name).write_text(name)
    being_written.write_text("half")
    publish_items(here)
    assert store.children("") == ["items"]
    assert store.children("items") == ["step_1.jsonl"]
    being_written.unlink()
    publish_rest(here)
    assert store.children("") == ["items", "trial.log", "weights"]
    assert store.read("weights/adapter") == b"weights/adapter"
    assert list((node_cache() / "attempts").glob("*/*")) == []


def test_an_attempt_that_ends_late_leaves_a_later_one_its_files(config: TrialConfig) -> None:
    """The next attempt may train in another slot host of the node by then."""
    store, number = config.output_dir.rpartition("_")[0], (9, 10, 11)
    attempts = [
        on_this_node(config.model_copy(update={"output_dir": f"{store}_{n}"})) for n in number
    ]
    folders = [Path(attempt.output_dir) for attempt in attempts]
    for folder in folders:
        folder.mkdir(parents=True)
    clear_node(attempts[1])
    assert [folder.parent.exists() for folder in folders] == [False, False, True]
    clear_node(attempts[2])
    assert not folders[2].parent.exists()
