"""Where the workers of an attempt write, and how it reaches the sweep's storage.

On a local or shared disk an attempt's folder is inside the sweep's, and nothing here does anything.
With an object store a worker writes to a scratch folder on its node and publishes from there:
checkpoints as they are made, weights at the end. If an attempt is lost, or stopped by Tune, its
best evaluation's weights are lost with it; their value is part of its checkpoints. The scratch
folder is removed when the attempt ends, unless it failed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from trainables.config import TrialConfig
from trainables.records.schema import BASE_RECORD
from trainables.storage.base_storage import Storage, read_or_none
from trainables.storage.disk import whole_folder, write_whole
from trainables.storage.locations import node_cache
from trainables.storage.storage import is_address, open_storage
from trainables.training.checkpoint_files import (
    BEST,
    BEST_EVALUATION,
    CHECKPOINTS,
    FILES,
    checkpoints,
    is_valid,
)

_RESULTS = ("weights", BEST, "items")


def on_this_node(trial: TrialConfig) -> TrialConfig:
    """The trial with all its folders on this node, where what it reads is fetched.

    Every worker of a group may call this; workers on one node share the folders.
    """
    if not is_address(trial.output_dir):
        return trial
    scratch = _scratch(trial.output_dir)
    if trial.workers > 1:
        _drop_unpublished(scratch / "attempt", trial.output_dir)
    # Include what this attempt published: after running out of memory it resumes in other workers.
    published = (*trial.earlier_attempts, trial.output_dir)
    return trial.model_copy(
        update={
            "output_dir": str(scratch / "attempt"),
            "published_dir": trial.output_dir,
            "base_dir": str(_fetch_base(trial.base_dir)),
            "earlier_attempts": _fetch_earlier(published, scratch / "earlier"),
        }
    )


def beside_workers(trial: TrialConfig) -> TrialConfig:
    """The trial for a process that only waits for its workers: a place for its log."""
    if not is_address(trial.output_dir):
        return trial
    scratch = _scratch(trial.output_dir, waits=True)
    changes = {"output_dir": str(scratch / "attempt"), "published_dir": trial.output_dir}
    return trial.model_copy(update=changes)


def is_scratch(trial: TrialConfig) -> bool:
    """Whether the attempt's folder is a scratch one, from which all that counts is published."""
    return trial.published_dir is not None


def publish_checkpoints(trial: TrialConfig) -> None:
    """Sync the published checkpoints with the attempt's folder; new ones are added first."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    here = {path.name: path for path in checkpoints([Path(trial.output_dir)])}
    there = set(storage.children(CHECKPOINTS))
    for name in sorted(here.keys() - _whole(storage, there)):
        storage.publish(here[name], f"{CHECKPOINTS}/{name}", last=FILES)
    for name in there - here.keys():
        storage.remove(f"{CHECKPOINTS}/{name}")


def _whole(storage: Storage, names: Iterable[str]) -> set[str]:
    """The published checkpoints of these names that no process died in the middle of."""
    return {name for name in names if storage.exists(f"{CHECKPOINTS}/{name}/{FILES}")}


def publish_file(trial: TrialConfig, file: Path) -> None:
    """Publish a file of the attempt's folder."""
    if trial.published_dir is not None:
        name = file.relative_to(trial.output_dir).as_posix()
        open_storage(trial.published_dir).publish(file, name)


def publish_items(trial: TrialConfig) -> None:
    """Publish the items of evaluations not yet published."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    there = set(storage.children("items"))
    for file in sorted(Path(trial.output_dir).glob("items/step_*")):  # skips unfinished files
        if file.name not in there:
            storage.publish(file, f"items/{file.name}")


def publish_results(trial: TrialConfig) -> None:
    """Publish an attempt's results except checkpoints, and remove them from the node."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    for path in (Path(trial.output_dir) / name for name in _RESULTS):
        if path.exists():
            storage.publish(path, path.name, last=BEST_EVALUATION)
            shutil.rmtree(path)


def publish_rest(trial: TrialConfig) -> None:
    """Publish an attempt's results and logs, without its checkpoints, and clear its node."""
    publish_results(trial)
    for log in sorted(Path(trial.output_dir).glob("*.log")):
        publish_file(trial, log)
    clear_node(trial)


def worker_log(trial: TrialConfig, rank: int) -> Path:
    """The log of one worker of a group."""
    return Path(trial.output_dir) / f"worker_{rank}.log"


def publish_worker(trial: TrialConfig, rank: int, is_stopped: bool = False) -> None:
    """Publish one worker's log and, from the first worker's node, the results.

    If Tune has stopped the trial, only the log: its end is recorded, and nobody would delete best
    weights that are published now.
    """
    publish_file(trial, worker_log(trial, rank))
    if rank == 0 and not is_stopped:
        publish_results(trial)


def clear_node(trial: TrialConfig) -> None:
    """Remove everything of this attempt and earlier ones on this node; published files stay.

    A later attempt, which may already train here in another process, keeps its own.
    """
    if trial.published_dir is None:
        return
    own = Path(trial.output_dir).parent
    for attempt in own.parent.glob("attempt_*"):
        if _number(attempt) <= _number(own):
            shutil.rmtree(attempt, ignore_errors=True)


def _number(attempt: Path) -> int:
    return int(attempt.name.rpartition("_")[2])


def clear_trial(address: str) -> None:
    """Remove everything that attempts of a trial left on this node, by the address of one."""
    for waits in (False, True):
        shutil.rmtree(_scratch(address, waits).parent, ignore_errors=True)


def published_address(trial: TrialConfig, folder: Path) -> str:
    """Address at which others find a folder of the attempt, or of an earlier one."""
    if trial.published_dir is None:
        return str(folder)
    if folder.parent == Path(trial.output_dir):
        return f"{trial.published_dir}/{folder.name}"
    attempts, _, _ = trial.published_dir.rpartition("/")
    return f"{attempts}/{folder.parent.name}/{folder.name}"  # see `_fetch_earlier`


def _scratch(address: str, waits: bool = False) -> Path:
    """Folder of an attempt, beside the trial's other attempts on this node.

    A waiting process has its own, since it may end at another time than the training ones.
    """
    trial, _, attempt = address.rpartition("/")
    digest = hashlib.sha256(trial.encode()).hexdigest()[:16]
    return node_cache() / ("waiting" if waits else "attempts") / digest / attempt


def _fetch_base(address: str) -> Path:
    """The base's evaluation and the data, fetched once per node and anew if they change."""
    storage = open_storage(address)
    digest = hashlib.sha256(address.encode() + storage.read(BASE_RECORD)).hexdigest()[:16]
    folder = node_cache() / "bases" / digest
    with _one_at_a_time(folder):
        if not folder.exists():
            with whole_folder(folder) as unfinished:
                storage.fetch("", unfinished)
    return folder


def _drop_unpublished(attempt: Path, address: str) -> None:
    """Delete checkpoints that died with their upload: the group's other nodes cannot fetch them."""
    here = checkpoints([attempt])
    whole = _whole(open_storage(address), (path.name for path in here))
    for path in here:
        if path.name not in whole:
            shutil.rmtree(path, ignore_errors=True)


def _fetch_earlier(addresses: Sequence[str], folder: Path) -> tuple[str, ...]:
    """What a training needs of earlier attempts, each in a folder of its own name in `folder`.

    That is the newest checkpoint, and of best weights the evaluation but not the weights. Fetched
    once per node.
    """
    attempts = {address: folder / address.rpartition("/")[2] for address in addresses}
    with _one_at_a_time(folder):
        _fetch_checkpoint(attempts)
        _fetch_best_evaluations(attempts)
    return tuple(str(attempt) for attempt in attempts.values() if attempt.exists())


def _fetch_checkpoint(attempts: Mapping[str, Path]) -> None:
    """Fetch the newest valid checkpoint of the attempts, given by address and folder here.

    At equal steps a later attempt comes first, as in `checkpoints`.
    """
    published = [
        (name, attempt, address)
        for attempt, address in enumerate(attempts)
        for name in open_storage(address).children(CHECKPOINTS)
    ]
    for name, _, address in sorted(published, reverse=True):
        checkpoint = attempts[address] / CHECKPOINTS / name
        if is_valid(checkpoint):  # takes as long as reading it
            return
        open_storage(address).fetch(f"{CHECKPOINTS}/{name}", checkpoint)
        if is_valid(checkpoint):
            return
        shutil.rmtree(checkpoint, ignore_errors=True)


def _fetch_best_evaluations(attempts: Mapping[str, Path]) -> None:
    """Fetch the evaluations at which the attempts' best weights were saved."""
    name = f"{BEST}/{BEST_EVALUATION}"
    for address, attempt in attempts.items():
        evaluation = read_or_none(open_storage(address), name)
        if evaluation is not None:
            write_whole(attempt / name, evaluation.decode())


def _one_at_a_time(folder: Path) -> FileLock:
    """A lock on `folder` among the processes of this node."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{folder}.lock")
