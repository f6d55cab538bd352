"""Where the workers of an attempt write, and how it reaches the sweep's storage.

On a local or shared disk an attempt's folder is inside the sweep's, and these functions do nothing.
With an object store a worker writes to a scratch folder on its node and publishes from there:
checkpoints as they are made, weights at the end. If an attempt is lost, its best weights are lost
with it; the value they had is part of its checkpoints.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from trainables.config import TrialConfig
from trainables.records.schema import BASE_RECORD
from trainables.storage.base_storage import read_or_none
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


def on_this_node(trial: TrialConfig, only_waits: bool = False) -> TrialConfig:
    """The trial with its folders on this node, into which what it reads is fetched.

    Workers on one node share the folders. A process that `only_waits` for the workers of its trial
    has a folder of its own for its log, and fetches nothing.
    """
    if not is_address(trial.output_dir):
        return trial
    scratch = _scratch(trial.output_dir, only_waits)
    changes = {"output_dir": str(scratch / "attempt"), "published_dir": trial.output_dir}
    if only_waits:
        return trial.model_copy(update=changes)
    # Include what this attempt published: after running out of memory it resumes in other workers.
    published = (*trial.earlier_attempts, trial.output_dir)
    fetched = {
        "base_dir": str(_fetch_base(trial.base_dir)),
        "earlier_attempts": _fetch_earlier(published, scratch / "earlier"),
    }
    return trial.model_copy(update=changes | fetched)


def is_scratch(trial: TrialConfig) -> bool:
    """Whether the attempt's folder is a scratch folder, which needs no flush to the disk."""
    return trial.published_dir is not None


def publish_checkpoints(trial: TrialConfig) -> None:
    """Publish new checkpoints, and then remove those that the attempt has deleted."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    here = {path.name: path for path in checkpoints([Path(trial.output_dir)])}
    there = set(storage.children(CHECKPOINTS))
    for name in sorted(here):
        if not storage.exists(f"{CHECKPOINTS}/{name}/{FILES}"):  # uploaded last
            storage.publish(here[name], f"{CHECKPOINTS}/{name}", last=FILES)
    for name in there - here.keys():
        storage.remove(f"{CHECKPOINTS}/{name}")


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
    """Publish weights and items, and remove them from the node."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    for path in (Path(trial.output_dir) / name for name in _RESULTS):
        if path.exists():
            storage.publish(path, path.name, last=BEST_EVALUATION)
            shutil.rmtree(path)


def publish_rest(trial: TrialConfig) -> None:
    """Publish weights, items and logs, and clear the node."""
    publish_results(trial)
    for log in sorted(Path(trial.output_dir).glob("*.log")):
        publish_file(trial, log)
    clear_node(trial)


def worker_log(trial: TrialConfig, rank: int) -> Path:
    """The log of one worker of a group."""
    return Path(trial.output_dir) / f"worker_{rank}.log"


def publish_worker(trial: TrialConfig, rank: int, is_stopped: bool = False) -> None:
    """Publish a worker's log and, if it is the first worker, the results.

    If Tune has stopped the trial, only the log: its end is recorded, and nobody would delete best
    weights that are published now.
    """
    publish_file(trial, worker_log(trial, rank))
    if rank == 0 and not is_stopped:
        publish_results(trial)


def clear_node(trial: TrialConfig) -> None:
    """Remove the files of this attempt and earlier ones from this node; published files stay.

    A later attempt may already train here in another process.
    """
    if trial.published_dir is None:
        return
    own = Path(trial.output_dir).parent
    for attempt in own.parent.glob("attempt_*"):
        if _number(attempt) <= _number(own):
            shutil.rmtree(attempt, ignore_errors=True)


def _number(attempt: Path) -> int:
    return int(attempt.name.removeprefix("attempt_"))


def clear_trial(address: str) -> None:
    """Remove what the attempts of a trial left on this node; `address` is that of one attempt."""
    for only_waits in (False, True):
        shutil.rmtree(_scratch(address, only_waits).parent, ignore_errors=True)


def published_address(trial: TrialConfig, folder: Path) -> str:
    """Where other nodes find a folder of this attempt, or of an earlier one."""
    if trial.published_dir is None:
        return str(folder)
    if folder.parent == Path(trial.output_dir):
        return f"{trial.published_dir}/{folder.name}"
    attempts, _, _ = trial.published_dir.rpartition("/")
    return f"{attempts}/{folder.parent.name}/{folder.name}"  # see `_fetch_earlier`


def _scratch(address: str, only_waits: bool) -> Path:
    """Folder of an attempt on this node; processes that wait and those that train end apart."""
    trial, _, attempt = address.rpartition("/")
    digest = hashlib.sha256(trial.encode()).hexdigest()[:16]
    return node_cache() / ("waiting" if only_waits else "attempts") / digest / attempt


def _fetch_base(address: str) -> Path:
    """The base's evaluation and the data, fetched once per node and again if they change."""
    storage = open_storage(address)
    digest = hashlib.sha256(address.encode() + storage.read(BASE_RECORD)).hexdigest()[:16]
    folder = node_cache() / "bases" / digest
    with _one_at_a_time(folder):
        if not folder.exists():
            with whole_folder(folder) as unfinished:
                storage.fetch("", unfinished)
    return folder


def _fetch_earlier(addresses: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Fetch the newest checkpoint and the best evaluations of earlier attempts, once per node.

    Returns:
        The attempts' folders, named as in the store.
    """
    attempts = {address: folder / address.rpartition("/")[2] for address in addresses}
    with _one_at_a_time(folder):
        _fetch_checkpoint(attempts)
        name = f"{BEST}/{BEST_EVALUATION}"
        for address, attempt in attempts.items():
            evaluation = read_or_none(open_storage(address), name)
            if evaluation is not None:
                write_whole(attempt / name, evaluation.decode())
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
        if is_valid(checkpoint):
            return
        open_storage(address).fetch(f"{CHECKPOINTS}/{name}", checkpoint)
        if is_valid(checkpoint):
            return
        shutil.rmtree(checkpoint, ignore_errors=True)


def _one_at_a_time(folder: Path) -> FileLock:
    """A lock on `folder` among the processes of this node."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{folder}.lock")
