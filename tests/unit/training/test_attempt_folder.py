"""What workers write reaches an object store, and what they need comes from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import save_checkpoint, trial, trial_config

from trainables.config import TrialConfig
from trainables.storage.locations import node_cache
from trainables.storage.storage import open_storage
from trainables.training.attempt_folder import (
    on_this_node,
    publish_worker,
)
from trainables.training.checkpoint_files import newest_valid
from tune.folder.disk_budget import PublishedCheckpoints


@pytest.fixture
def config(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    """The eleventh attempt of a trial whose sweep is in the store, after two others."""
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path / "node"))
    sweep = f"{bucket}/{tmp_path.name}"
    open_storage(sweep).write("base/base.json", b"{}")
    open_storage(sweep).write("base/items.jsonl", b"items")
    attempts = [f"{sweep}/trials/0000/attempt_{number}" for number in (9, 10, 11)]
    return trial_config(
        base_dir=f"{sweep}/base", output_dir=attempts[-1], earlier_attempts=attempts[:-1]
    )


def publish_checkpoint(attempt: str, step: int, here: Path) -> None:
    open_storage(attempt).publish(save_checkpoint(here, step), f"checkpoints/step_{step:08d}")


def newest(config: TrialConfig) -> tuple[str, str]:
    """Attempt and name of the newest checkpoint that was fetched."""
    found = newest_valid([Path(folder) for folder in on_this_node(config).earlier_attempts])
    assert found is not None
    return found.parents[1].name, found.name


def write_files(attempt: Path, *names: str) -> None:
    for name in names:
        (attempt / name).parent.mkdir(parents=True, exist_ok=True)
        (attempt / name).write_text(name)


def test_the_base_is_fetched_once_until_it_is_evaluated_again(config: TrialConfig) -> None:
    here = on_this_node(config)
    assert here.published_dir == config.output_dir
    assert Path(here.output_dir).is_relative_to(node_cache())
    (Path(here.base_dir) / "items.jsonl").write_bytes(b"the node's own")
    again = Path(on_this_node(config).base_dir)
    assert (again / "items.jsonl").read_bytes() == b"the node's own"
    open_storage(config.base_dir).write("base.json", b'{"other": 1}')
    other = Path(on_this_node(config).base_dir)
    assert (other / "items.jsonl").read_bytes() == b"items"


def test_the_newest_valid_checkpoint_of_any_attempt_is_fetched(
    config: TrialConfig, tmp_path: Path
) -> None:
    ninth, tenth = config.earlier_attempts
    publish_checkpoint(ninth, 8, tmp_path / "9")
    publish_checkpoint(tenth, 8, tmp_path / "10")
    assert newest(config) == ("attempt_10", "step_00000008")
    publish_checkpoint(ninth, 12, tmp_path / "9")
    publish_checkpoint(tenth, 16, tmp_path / "10")
    open_storage(tenth).remove("checkpoints/step_00000016/files.json")  # an upload that was cut off
    assert newest(config) == ("attempt_9", "step_00000012")
    # Its own: an attempt that ran out of memory resumes in other workers.
    publish_checkpoint(config.output_dir, 20, tmp_path / "11")
    assert newest(config) == ("attempt_11", "step_00000020")


def test_only_the_first_worker_of_a_group_publishes_weights(config: TrialConfig) -> None:
    """And not once Tune has stopped the trial, after which nobody would delete them."""
    here, store = on_this_node(config), open_storage(config.output_dir)
    names = ("weights/adapter", "best/adapter", "worker_0.log", "worker_1.log")
    write_files(Path(here.output_dir), *names)
    publish_worker(here, 1)
    assert store.children("") == ["worker_1.log"]
    publish_worker(here, 0, is_stopped=True)
    assert store.children("") == ["worker_0.log", "worker_1.log"]
    publish_worker(here, 0)
    assert store.children("") == ["best", "weights", "worker_0.log", "worker_1.log"]


def test_of_a_trained_trial_only_the_recorded_best_weights_stay(config: TrialConfig) -> None:
    attempts = (*config.earlier_attempts, config.output_dir)
    for attempt in attempts:
        for name in ("best/adapter", "checkpoints/step_00000004/files.json", "trial.log"):
            open_storage(attempt).write(name, b"")
    record = trial(
        output_dir=config.output_dir,
        earlier_attempts=config.earlier_attempts,
        best_weights_dir=f"{attempts[0]}/best",
    )
    PublishedCheckpoints().trial_ended(record)
    left = [open_storage(attempt).children("") for attempt in attempts]
    assert left == [["best", "trial.log"], ["trial.log"], ["trial.log"]]
