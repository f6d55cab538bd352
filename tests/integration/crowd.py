"""Sweeps side by side on one cluster, each a command of its own whose trials pretend to train.

    python crowd.py ADDRESS PAUSE_S ARGUMENT...

runs the command on a cluster and prints which of its placement groups are there when it is through.
It asks before it lets go of the cluster: with a driver Ray removes whatever that has left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

import fake_sweep
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

import tune.sweep
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord
from tune.cli import main
from tune.cluster.ray_cluster import ray_cluster

T = TypeVar("T")
_LOOK_EVERY_S = 0.2


@contextmanager
def cluster_of(nodes: int, gpus: int) -> Iterator[Cluster]:
    """A cluster of a head, and of nodes that have a core for each GPU that they pretend to have."""
    head = {
        "num_cpus": 0,
        "resources": {"driver": 1},
        "include_dashboard": False,
        # Else each node starts a worker for each of its cores, and nobody needs as many.
        "_system_config": {"prestart_worker_first_driver": False},
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=gpus, num_gpus=gpus, object_store_memory=80 << 20)
        yield cluster
    finally:
        cluster.shutdown()


class Driver:
    """A sweep in a process of its own.

    Args:
        address: of the cluster where it runs.
        folder: for the sweep's folder; of its own.
        base_cache: where the base's evaluation lies.
        pause_s: what each step of a trial takes.
        settings: of the sweep.
        arguments: of the command.
    """

    def __init__(
        self,
        address: str,
        folder: Path,
        base_cache: Path,
        pause_s: float,
        settings: Iterable[str],
        *arguments: str,
    ) -> None:
        folder.mkdir()
        (folder / ".base").symlink_to(base_cache)
        words = [word for setting in settings for word in ("--set", setting)]
        self.ledger = Ledger(folder / "quickstart")
        self._process = subprocess.Popen(
            [
                *(sys.executable, __file__, address, str(pause_s), "quickstart"),
                *("--output-dir", str(folder), *words, *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self, timeout_s: float) -> tuple[list[TrialRecord], list[str]]:
        """Its trials, and the placement groups it left, once it has ended."""
        try:
            said, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _ = self._process.communicate()
            raise AssertionError(said) from None
        assert self._process.returncode == 0, said
        return self.ledger.trials(), json.loads(said.splitlines()[-1])


@contextmanager
def looked_at(look: Callable[[], T]) -> Iterator[list[T]]:
    """What is seen over and over until the block ends."""
    seen: list[T] = []
    ended = Event()

    def keep_looking() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            seen.append(look())

    looking = Thread(target=keep_looking)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join()


def gpus_held(cluster: Cluster) -> float:
    """By all placement groups together."""
    groups = cluster.global_state.placement_group_table().values()
    created = [group["bundles"].values() for group in groups if group["state"] == "CREATED"]
    return sum(bundle.get("GPU", 0) for bundles in created for bundle in bundles)


def gpus_of(record: TrialRecord) -> float:
    """What a trial holds."""
    return record.config.workers * record.config.gpus_per_worker


def most_gpus(records: Iterable[TrialRecord]) -> float:
    """Held at once at any time, by the trials' records."""
    changes: Counter[float] = Counter()
    for record in records:
        assert record.ended is not None
        changes[record.started] += gpus_of(record)
        changes[record.ended] -= gpus_of(record)
    return max(sum(changes[at] for at in changes if at <= time) for time in changes)


def span(records: list[TrialRecord]) -> tuple[float, float]:
    """From the start of the first trial to the end of the last."""
    return min(r.started for r in records), max(r.ended or 0.0 for r in records)


def _left() -> list[str]:
    """This driver's placement groups; their ids end with its own."""
    driver = ray.get_runtime_context().get_job_id()
    return [
        group
        for group, told in ray.util.placement_group_table().items()
        if told["state"] != "REMOVED" and group.endswith(driver)
    ]


def _run(address: str, pause_s: str, *arguments: str) -> int:
    cloudpickle.register_pickle_by_value(fake_sweep)  # workers have no folder of tests
    fake_sweep.PAUSE_S = float(pause_s)
    tune.sweep.Sweep = partial(tune.sweep.Sweep, trainable=fake_sweep.fake_trial)  # type: ignore
    with ray_cluster(address):
        code = main([*arguments, "--address", address])
        print(json.dumps(_left()))
    return code


if __name__ == "__main__":
    sys.exit(_run(*sys.argv[1:]))
