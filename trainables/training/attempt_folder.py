"""Where the workers of an attempt write, and how it gets to where the sweep lies.

On a local or shared disk an attempt's folder is the sweep's own, and nothing here does anything. In
an object store a worker writes to a scratch folder of its node and publishes from there:
checkpoints as they are made, weights at the end. Of an attempt that is lost, or that Tune stops in
a process of its own, the weights of its best evaluation are lost with it. The scratch goes with the
attempt, but for one that fails.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainables.config import TrialConfig
from trainables.files.locations import node_cache
from trainables.files.storage import is_address, open_storage
from trainables.training.checkpoint_files import is_valid

CHECKPOINTS, BEST = "checkpoints", "best"
_RESULTS = ("weights", BEST, "items")
_MANIFEST = "files.json"


def on_this_node(trial: TrialConfig) -> TrialConfig:
    """The trial with all its folders on this node; what it reads of them is fetched.

    Every worker of a group may call this; those of one node share the folders.
    """
    if not is_address(trial.output_dir):
        return trial
    scratch = _scratch(trial.output_dir)
    # Also what this attempt has published: one that ran out of memory goes on in other workers.
    published = (*trial.earlier_attempts, trial.output_dir)
    return trial.model_copy(
        update={
            "output_dir": str(scratch / "attempt"),
            "published_dir": trial.output_dir,
            "base_dir": str(_fetch_base(trial.base_dir)),
            "earlier_attempts": _fetch_checkpoint(published, scratch / "earlier"),
        }
    )


def beside_workers(trial: TrialConfig) -> TrialConfig:
    """The trial for a process that only waits for those which train it: a place for its log."""
    if not is_address(trial.output_dir):
        return trial
    scratch = _scratch(trial.output_dir, waits=True)
    changes = {"output_dir": str(scratch / "attempt"), "published_dir": trial.output_dir}
    return trial.model_copy(update=changes)


def publish_checkpoints(trial: TrialConfig) -> None:
    """Make the published checkpoints those of the attempt's folder; the newest is added first."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    folder = Path(trial.output_dir) / CHECKPOINTS
    here = {path.name for path in folder.glob("step_*")}
    there = set(storage.children(CHECKPOINTS))
    for name in sorted(here - there):
        storage.publish(folder / name, f"{CHECKPOINTS}/{name}", last=_MANIFEST)
    for name in there - here:
        storage.remove(f"{CHECKPOINTS}/{name}")


def remove_published(addresses: Iterable[str], names: Sequence[str]) -> None:
    """Delete checkpoints, or the weights of the best evaluation, that attempts have published."""
    for address in addresses:
        storage = open_storage(address)
        for name in names:
            storage.remove(name)


def publish_items(trial: TrialConfig) -> None:
    """Publish the items of the evaluations that are not published yet."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    there = set(storage.children("items"))
    for file in sorted(Path(trial.output_dir).glob("items/step_*")):  # none that is being written
        if file.name not in there:
            storage.publish(file, f"items/{file.name}")


def publish_results(trial: TrialConfig) -> None:
    """Publish what an attempt has made but its checkpoints; none of it stays on the node."""
    if trial.published_dir is None:
        return
    storage = open_storage(trial.published_dir)
    for path in (Path(trial.output_dir) / name for name in _RESULTS):
        if path.exists():
            storage.publish(path, path.name)
            shutil.rmtree(path)


def publish_rest(trial: TrialConfig) -> None:
    """Publish what an attempt leaves at its end but its checkpoints, and clear its node."""
    if trial.published_dir is None:
        return
    publish_results(trial)
    storage = open_storage(trial.published_dir)
    for log in sorted(Path(trial.output_dir).glob("*.log")):
        storage.publish(log, log.name)
    clear_node(trial)


def publish_worker(trial: TrialConfig, rank: int) -> None:
    """Publish what one worker of a group leaves; the weights lie on the node of the first."""
    if trial.published_dir is None:
        return
    log = f"worker_{rank}.log"
    open_storage(trial.published_dir).publish(Path(trial.output_dir) / log, log)
    if rank == 0:
        publish_results(trial)


def clear_node(trial: TrialConfig) -> None:
    """Remove what the attempts of a trial have left on this node; what is published stays."""
    if trial.published_dir is not None:
        shutil.rmtree(Path(trial.output_dir).parents[1], ignore_errors=True)


def published_address(trial: TrialConfig, folder: Path) -> str:
    """Where a folder of the attempt is found by others."""
    if trial.published_dir is None:
        return str(folder)
    return f"{trial.published_dir}/{folder.name}"


def _scratch(address: str, waits: bool = False) -> Path:
    """Folder of an attempt, beside those of the trial's other attempts on this node.

    A process that waits has its own: it ends when it may, and those that train when they must.
    """
    trial, _, attempt = address.rpartition("/")
    digest = hashlib.sha256(trial.encode()).hexdigest()[:16]
    return node_cache() / ("waiting" if waits else "attempts") / digest / attempt


def _fetch_base(address: str) -> Path:
    """The base's evaluation and the data, once a node; told apart should they be made anew."""
    storage = open_storage(address)
    digest = hashlib.sha256(address.encode() + storage.read("base.json")).hexdigest()[:16]
    folder = node_cache() / "bases" / digest
    with _one_at_a_time(folder):
        if not folder.exists():
            unfinished = folder.with_name(f".{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            storage.fetch("", unfinished)
            unfinished.rename(folder)
    return folder


def _fetch_checkpoint(addresses: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """The newest valid checkpoint of the earlier attempts, once a node."""
    published = [
        (name, address)
        for address in addresses
        for name in open_storage(address).children(CHECKPOINTS)
    ]
    with _one_at_a_time(folder):
        for name, address in sorted(published, reverse=True):
            checkpoint = folder / CHECKPOINTS / name
            if is_valid(checkpoint):  # which takes as long as reading it
                return (str(folder),)
            open_storage(address).fetch(f"{CHECKPOINTS}/{name}", checkpoint)
            if is_valid(checkpoint):
                return (str(folder),)
            shutil.rmtree(checkpoint, ignore_errors=True)
    return ()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the processes of this node."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
