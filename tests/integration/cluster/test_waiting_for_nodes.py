"""Before the first trial the command says what it does, and what it waits for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler.node_launch_exception import NodeLaunchException

from trainables.config import TrialConfig
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import SweepRecord
from trainables.workers.autoscaler import last_failure
from trainables.workers.node import NodeReport
from trainables.workers.packed_trials import SlotHosts, start_slot_host
from tune.cluster import waiting
from tune.cluster.slot_hosts import HostPool
from tune.cluster.waiting import WaitForRoom, awaited
from tune.config.sweep_config import SweepConfig
from tune.listeners import SweepListener
from tune.resources.capacity import wording
from tune.sweep import Sweep

pytestmark = pytest.mark.usefixtures("cluster")


STATUS = DEBUG_AUTOSCALING_STATUS.encode()


def address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def write_down(tracker: NodeProviderAvailabilityTracker) -> None:
    """As Ray's autoscaler does."""
    summary = AutoscalerSummary({}, {}, [], {}, [], node_availability_summary=tracker.summary())
    status = json.dumps({"autoscaler_report": asdict(summary)})
    GcsClient(address=address()).internal_kv_put(STATUS, status.encode(), True, None)


@pytest.fixture
def tracker() -> Iterator[NodeProviderAvailabilityTracker]:
    yield NodeProviderAvailabilityTracker(timer=lambda: 0)
    GcsClient(address=address()).internal_kv_del(STATUS, False, None)


def test_the_last_failure_counts_until_a_node_starts(
    tracker: NodeProviderAvailabilityTracker,
) -> None:
    assert last_failure(address()) is None
    quota = NodeLaunchException("VcpuLimitExceeded", "0 vCPUs are allowed", None)
    capacity = NodeLaunchException("InsufficientInstanceCapacity", "no capacity", None)
    tracker.update_node_availability("gpu_on_demand", 1, quota)
    write_down(tracker)
    said = "gpu_on_demand cannot be had: VcpuLimitExceeded: 0 vCPUs are allowed"
    assert last_failure(address()) == said
    tracker.update_node_availability("gpu_spot", 2, capacity)
    write_down(tracker)
    assert (
        last_failure(address())
        == "gpu_spot cannot be had: InsufficientInstanceCapacity: no capacity"
    )
    tracker.update_node_availability("gpu_on_demand", 3, None)
    write_down(tracker)
    assert last_failure(address()) is None


class EnoughError(Exception):
    pass


class Twice:
    """Is told two lines, and then has enough."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, message: str) -> None:
        self.told.append(message)
        if len(self.told) == 2:
            raise EnoughError


def test_who_waits_for_a_node_says_so_again_and_again(
    tracker: NodeProviderAvailabilityTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.update_node_availability("gpu", 1, NodeLaunchException("Quota", "0 vCPUs", None))
    write_down(tracker)
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.1)
    waits = "waiting for a node with 8 CPUs and 1 GPU"
    why = f"{waits}: gpu cannot be had: Quota: 0 vCPUs"
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        write_down(tracker)  # again, as this cluster's own autoscaler writes every five seconds
        if told.count(why) == 2:
            raise EnoughError

    answer = ray.remote(num_cpus=0, num_gpus=1)(lambda: None).remote()
    with pytest.raises(EnoughError):
        awaited(answer, {"CPU": 8, "GPU": 1}, tell)
    ray.cancel(answer)
    assert {*told} <= {why, waits}
    told.clear()
    busy = ray.remote(num_cpus=0)(lambda: [__import__("time").sleep(0.5), None][1]).remote()
    assert awaited(busy, {"CPU": 2, "GPU": 0}, tell) is None
    assert told == []  # there is a node, which is at work


def test_so_does_who_waits_for_a_host_of_slots(
    load: Callable[..., SweepConfig],
    make_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.1)
    config, tell = load("resources.lora={gpus_per_worker: 1, slots: 2}"), Twice()
    cluster = {"CPU": 8.0, "GPU": 8.0}  # as an autoscaler may make it
    hosts = HostPool(config, cluster, lambda *point: make_trial(), {}, tell)
    with pytest.raises(EnoughError), hosts:
        hosts.ready(samples=8, most_at_once=lambda: 2)
    assert tell.told == ["waiting for a node with 1 GPU and 1 CPU"] * 2


@pytest.mark.parametrize(
    ("statuses", "workers", "gpus", "waits"),
    [
        (["ERROR", "PENDING"], 1, 1, True),
        (["RUNNING", "PENDING"], 1, 1, False),
        (["TERMINATED"], 1, 1, False),  # others are yet to be drawn
        (["PENDING"], 1, 0, False),  # there is room, if not yet a process
        (["PENDING"], 2, 0, True),
    ],
)
def test_so_does_a_sweep_of_which_no_trial_runs(
    make_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
    statuses: list[str],
    workers: int,
    gpus: int,
    waits: bool,
) -> None:
    trial = make_trial()
    train = trial.train.model_copy(update={"micro_batch_size": 1})
    trial = trial.model_copy(update={"workers": workers, "train": train})
    config = {"trial": trial.model_dump(mode="json")}
    trials = [SimpleNamespace(status=status, config=config) for status in statuses]
    told: list[str] = []
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 60.0)
    cores = ray.cluster_resources()["CPU"]
    wait = WaitForRoom({"lora": {"GPU": gpus, "CPU": cores}}, None, told.append)
    wait.on_step_end(0, trials)  # type: ignore[arg-type]
    assert told == []
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.0)
    for _ in range(2):
        wait.on_step_end(0, trials)  # type: ignore[arg-type]
    node = wording({"GPU": 1, "CPU": cores} if gpus else {"CPU": cores})
    assert told == [f"waiting for a node with {node}"] * 2 * waits


def test_so_does_a_sweep_whose_slots_have_lost_their_hosts(
    make_trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.0)
    config = {"trial": make_trial().model_dump(mode="json")}
    trials = [SimpleNamespace(status="RUNNING", config=config)]
    told: list[str] = []
    hosts = []
    try:
        for held in ({"GPU": 1}, {"CPU": 0}):
            hosts.append(start_slot_host(held))
            if held == {"CPU": 0}:
                ray.get(hosts[-1].load.remote())  # it is up
            wait = WaitForRoom({"lora": {"GPU": 1}}, SlotHosts((*hosts,), 2), told.append)
            wait.on_step_end(0, trials)  # type: ignore[arg-type]
            assert told == ["waiting for a node with 1 GPU"]
    finally:
        for host in hosts:
            ray.kill(host)


def test_the_sweep_asks_whether_there_is_room(
    load: Callable[..., SweepConfig],
    base_dir: Path,
    base_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    class Listener(SweepListener):
        def sweep_started(self, *arguments: object) -> None:
            monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.0)
            monkeypatch.setattr(waiting, "nodes_up", list)

        def preparing(self, message: str) -> None:
            told.append(message)
            if message.startswith("waiting"):
                raise EnoughError

    shutil.copytree(base_dir, tmp_path / "sweep" / "base")
    sweep = Sweep(
        load("search.full=null", "train.steps=4", "budget.trials=1"), tmp_path / "sweep", base_cache
    )
    with pytest.raises(EnoughError):
        sweep.run([Listener()])
    assert told[-1] == "waiting for a node with 1 CPU"


def test_the_base_s_evaluation_is_announced_once(
    load: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listener(SweepListener):
        def preparing(self, message: str) -> None:
            told.append(message)

        def sweep_started(self, *arguments: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)  # workers run elsewhere
    for _ in range(2):
        sweep = Sweep(load("eval.limit=4"), Path("sweeps/quickstart"), Path("sweeps/.base"))
        with pytest.raises(KeyboardInterrupt):
            sweep.run([Listener()])
    assert told == ["evaluating the base package://trainables/embedded/model ..."]
    assert list((tmp_path / "sweeps" / ".base").glob("*/base.json"))
    assert [path.name for path in Path("sweeps/quickstart/base").glob(".seen*")] == []


@pytest.mark.parametrize(
    ("kib", "ending", "told"),
    [(8_000, UserError, "at one sample at a time"), (40_000, EnoughError, "it starts")],
)
def test_memory_is_asked_for_again_where_the_base_s_evaluation_brought_the_gpus(
    kib: int,
    ending: type[BaseException],
    told: str,
    load: Callable[..., SweepConfig],
    base_dir: Path,
    base_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a cluster of which only the head is up, which has none. `kib`: beside CUDA's own."""
    gpu = {"CPU": 8.0, "GPU": 8.0}
    head = NodeReport(address="head", ray="", python="", most_workers=gpu, worker_types=[gpu])
    worker = NodeReport(address="worker", ray="", python="", gpu_bytes=(1 << 30) + (kib << 10))

    def up(*question: object) -> list[NodeReport]:
        return [head, worker] if (tmp_path / "base").exists() else [head]

    def have_base_evaluated(config: object, ledger: Ledger, *rest: object) -> None:
        shutil.copytree(base_dir, ledger.folder.base)

    monkeypatch.setattr("tune.sweep.ask_nodes", up)
    monkeypatch.setattr("tune.sweep.check_nodes", lambda *reports: None)
    monkeypatch.setattr("tune.sweep.have_base_evaluated", have_base_evaluated)

    class Listener(SweepListener):
        def sweep_started(self, sweep: SweepRecord, base: object, finished: object) -> None:
            raise EnoughError("it starts")

    sweep = Sweep(load("search.full=null"), tmp_path, base_cache)
    with pytest.raises(ending, match=told):
        sweep.run([Listener()])
