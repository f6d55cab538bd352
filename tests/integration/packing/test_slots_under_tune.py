"""Slots under Tune: each trial is an ordinary one, and measures what it does by itself."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import ray
from killed_trials import HostKiller, host_processes
from measured import OF_THE_PROCESS
from ray.exceptions import ActorUnavailableError, RayActorError

from trainables.packing.host import MEASUREMENT
from trainables.packing.packed_client import PackedClient
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from trainables.workers.packed_trials import (
    SlotHostActor,
    SlotHosts,
    _join,
    _load,
    has_process,
    life_of,
    start_slot_host,
    train_in_slot,
)
from trainables.workers.stop_request import StopRequest
from tune.cluster.slot_hosts import HostPool
from tune.cluster.waiting import answer_of
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import TrialConfig
    from tune.config.sweep_config import SweepConfig

    RunSweep = Callable[..., tuple[SweepOutcome, Ledger]]

pytestmark = pytest.mark.usefixtures("cluster")

FOUR_TRIALS = (
    "search={lora: {rank: [4, 8], alpha: 8, learning_rate: [1.0e-3, 1.0e-4]}}",
    "sampler=grid",
    "budget.trials=4",
    "train.steps=12",
    "train.report_every=4",
)
TOGETHER = ("resources.lora.slots=2",)


@pytest.fixture(scope="module")
def run_sweep(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunSweep:
    def run_sweep(
        *overrides: str, listener: SweepListener | None = None
    ) -> tuple[SweepOutcome, Ledger]:
        folder = tmp_path_factory.mktemp("sweep") / "sweep"
        outcome = Sweep(load(*overrides), folder, base_cache).run([listener or SweepListener()])
        return outcome, Ledger(folder)

    return run_sweep


def finals(outcome: SweepOutcome) -> dict[int, dict[str, float]]:
    """Final metrics by trial."""
    return {
        record.number: {
            key: value
            for key, value in (record.last.metrics if record.last else {}).items()
            if not key.startswith(OF_THE_PROCESS) and key != "train/grad_norm"
        }
        for record in outcome.records
    }


def test_trials_of_a_host_that_dies_go_on_and_measure_what_they_do_by_themselves(
    run_sweep: RunSweep,
) -> None:
    killer = HostKiller(step=6)
    outcome, ledger = run_sweep(*FOUR_TRIALS, *TOGETHER, listener=killer)
    assert killer.killed
    assert killer.interrupted
    assert {r.status for r in outcome.records} == {TrialStatus.COMPLETE}
    assert {r.attempt for r in outcome.records} >= {2}
    assert all(record.weights_dir for record in outcome.records)
    assert not list(ledger.folder.root.rglob("checkpoints"))
    for record in outcome.records:
        assert [m.step for m in ledger.measurements(record.number)] == list(range(1, 13))
    _, alive = psutil.wait_procs(host_processes(), timeout=20)
    assert not alive
    one_by_one = finals(run_sweep(*FOUR_TRIALS)[0])
    assert finals(outcome).keys() == one_by_one.keys()
    for number, metrics in finals(outcome).items():
        assert metrics == pytest.approx(one_by_one[number], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute, mostly; once it was 276 s
def test_a_trial_that_ends_its_host_each_time_fails_alone(
    run_sweep: RunSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Host(SlotHostActor):
        async def _admit(self, client: PackedClient, busy: int) -> bool:
            if client.trial.number == 0:
                os._exit(1)
            return await super()._admit(client, busy)

    def start(held: dict[str, float]) -> Any:
        return ray.remote(Host).options(num_cpus=2, max_restarts=-1, max_concurrency=100).remote()

    monkeypatch.setattr("tune.cluster.slot_hosts.start_slot_host", start)
    outcome, _ = run_sweep(
        *FOUR_TRIALS,
        "resources.lora={slots: 4, cpus_per_worker: 2}",
        "budget.retries=1",
    )
    statuses = {r.number: r.status for r in outcome.records}
    assert statuses[0] is TrialStatus.FAILED
    assert {statuses[number] for number in (1, 2, 3)} == {TrialStatus.COMPLETE}


def test_a_trial_that_diverges_or_is_stopped_leaves_the_others(run_sweep: RunSweep) -> None:
    outcome, ledger = run_sweep(
        "search={lora: {rank: 8, alpha: 16, "
        "learning_rate: [1.0e+15, 1.0e-3, 1.0e-7, 3.0e-3, 1.0e-6]}}",  # 4th, 2nd, 5th, 3rd, 1st
        "sampler=grid",
        "budget.trials=5",
        "train.weight_decay=0.1",  # by which the first trial's weights overflow
        "train.steps=24",
        "train.report_every=8",
        "early_stopping={metrics: {validation/loss: -1}, reduction_factor: 2, first_rung: 0.3, "
        "loss_limit: null}",
        "resources.max_concurrent=2",  # those that are to be stopped come after better ones
        "resources.lora.slots=5",
        "resources.lora.cpus_per_worker=2",
    )
    statuses = {r.config.learning_rate: r.status for r in outcome.records}
    assert statuses[1e15] is TrialStatus.DIVERGED
    assert statuses[3e-3] is TrialStatus.COMPLETE
    stopped = [r for r in outcome.records if r.status is TrialStatus.STOPPED_EARLY]
    assert stopped
    for record in stopped:
        assert record.last is not None
        assert ledger.measurements(record.number)[-1] == record.last


def test_what_cannot_be_batched_has_no_hosts_and_is_told(
    load: Callable[..., SweepConfig], make_trial: Callable[..., TrialConfig]
) -> None:
    told: list[str] = []
    config = load(
        "search={lora: {rank: 4, alpha: 8, dora: true, learning_rate: 1.0e-3}}",
        "resources.lora.slots=2",
    )
    of_earlier_sweeps = host_processes()
    with HostPool(config, {"CPU": 2.0}, lambda *point: make_trial(), {}, told.append) as pool:
        assert pool.ready(samples=8, most_at_once=lambda: 1) is None
        assert not set(host_processes()) - set(of_earlier_sweeps)
    (line,) = told
    assert line.startswith("warning: each LoRA trial trains by itself: DoRA's norms")


def test_an_earlier_attempt_that_nobody_listens_to_leaves_its_host(
    make_trial: Callable[..., TrialConfig],
) -> None:
    """A trial's own process may die while its host lives; its next attempt may go to another."""
    hosts = SlotHosts(tuple(start_slot_host({"CPU": 0.5}) for _ in range(2)), slots=2)
    endless = {"steps": 10_000, "report_every": 10_000}
    first = make_trial(train=endless)
    try:
        ray.get(hosts.actors[0].join.remote(first, 2))
        assert MEASUREMENT in ray.get(hosts.actors[0].next_event.remote(first.trial_id))
        second = _join(hosts, make_trial(train=endless), "new")
        assert second == hosts.actors[1]
        assert ray.get([actor.load.remote() for actor in hosts.actors]) == [0, 1]
    finally:
        for actor in hosts.actors:
            ray.kill(actor)


def test_a_host_whose_answer_is_lost_does_not_train_a_trial_beside_another(
    make_trial: Callable[..., TrialConfig],
) -> None:
    class Host(SlotHostActor):
        async def join(self, *arguments: Any, **options: Any) -> bool:
            await super().join(*arguments, **options)
            raise ActorUnavailableError("the answer is lost", None)

    deaf = ray.remote(Host).options(num_cpus=0.5, max_concurrency=10).remote()
    hosts = SlotHosts((deaf, start_slot_host({"CPU": 0.5})), slots=1)
    ray.get([actor.load.remote() for actor in hosts.actors])
    try:
        trial = make_trial(train={"steps": 10_000, "report_every": 10_000})
        assert _join(hosts, trial, "a") == hosts.actors[1]
        deadline = time.monotonic() + 60
        while (loads := ray.get([actor.load.remote() for actor in hosts.actors])) != [0, 1]:
            assert time.monotonic() < deadline, loads
            time.sleep(0.2)
    finally:
        for actor in hosts.actors:
            ray.kill(actor)


def test_a_host_that_can_never_start_is_left_out_and_trials_do_not_wait_for_none(
    make_trial: Callable[..., TrialConfig],
) -> None:
    broken = {"conda": "no_such_environment"}
    never = ray.remote(SlotHostActor).options(num_cpus=0.5, runtime_env=broken).remote()
    up = start_slot_host({"CPU": 0.5})
    try:
        assert _join(SlotHosts((never, up), slots=1), make_trial(), "a") == up
    finally:
        ray.kill(up)
    with pytest.raises(RayActorError, match="all slot hosts have ended"):
        _join(SlotHosts((never, up), slots=1), make_trial(), "a")


@pytest.mark.slow
def test_a_trial_without_a_free_slot_has_one_on_a_host_that_comes_up(
    make_trial: Callable[..., TrialConfig],
) -> None:
    """As on a growing cluster, where hosts still wait for their nodes."""
    up, other = start_slot_host({"CPU": 0.5}), start_slot_host({"CPU": 1.5})
    ray.get([up.load.remote(), other.load.remote()])
    late = start_slot_host({"CPU": 1.0})
    hosts = SlotHosts((up, late), slots=1)
    first, second = (
        make_trial(trial_id=name, train={"steps": 10_000, "report_every": 10_000})
        for name in ("first", "second")
    )
    try:
        assert _join(hosts, first, "a") == up
        with ThreadPoolExecutor() as pool:
            joined = pool.submit(_join, hosts, second, "b")
            with pytest.raises(TimeoutError):
                joined.result(timeout=5)
            ray.kill(other)
            assert joined.result(timeout=30) == late
        assert ray.get([actor.load.remote() for actor in hosts.actors]) == [1, 1]
    finally:
        for actor in (*hosts.actors, other):
            ray.kill(actor)


@pytest.mark.slow
def test_hosts_that_no_trial_will_need_end_and_others_train_on(
    load: Callable[..., SweepConfig], make_trial: Callable[..., TrialConfig]
) -> None:
    config = load("search.full=null", "resources.lora={cpus_per_worker: 0.5, slots: 2}")
    most = [3]
    first, second, third = (
        make_trial(trial_id=name, train={"steps": 10_000, "report_every": 10_000})
        for name in ("first", "second", "third")
    )
    over = TrialRecord(config=third, params={}, started=0)
    others = set(host_processes())  # those of an earlier test may still be ending

    def up() -> list[int | None]:
        """Trials of each host; None for one that has ended."""
        return [_load(actor.load.remote()) for actor in hosts.actors]

    with HostPool(config, {"CPU": 1.5}, lambda *point: make_trial(), {}, print) as pool:
        hosts = pool.ready(samples=8, most_at_once=lambda: most[0])
        assert hosts is not None
        assert len(hosts.actors) == 3
        busy = hosts.actors.index(_join(hosts, first, "a"))
        pool.trial_ended(over)
        assert up().count(None) == 1
        most[0] = 0
        pool.trial_ended(over)  # more than there are, and one of them at work
        assert [host for host, load in enumerate(up()) if load is not None] == [busy]
        assert _join(hosts, second, "b") == hosts.actors[busy]
        pool.trial_ended(over.model_copy(update={"config": first}))
        pool.trial_ended(over.model_copy(update={"config": second}))
        assert up() == [None] * 3
        _, alive = psutil.wait_procs(set(host_processes()) - others, timeout=20)
        assert not alive
        assert set(host_processes()) <= others  # Ray restarts none of them


def test_a_host_whose_trials_have_listened_for_a_stop_request_ends_while_that_stands(
    load: Callable[..., SweepConfig], make_trial: Callable[..., TrialConfig]
) -> None:
    """Its cores or GPU would else be held to the sweep's end, and what comes last wait for them."""
    config = load("search.full=null", "resources.lora={cpus_per_worker: 1, slots: 1}")
    trial = make_trial(train={"steps": 1, "report_every": 1})
    others = set(host_processes())
    with (
        StopRequest({}),
        HostPool(config, {"CPU": 1.0}, lambda *point: make_trial(), {}, print) as pool,
    ):
        hosts = pool.ready(samples=8, most_at_once=lambda: 0)
        assert hosts is not None
        train_in_slot(hosts, trial, lambda measurement: None, suspect_at=None)
        (process,) = set(host_processes()) - others
        pool.trial_ended(TrialRecord(config=trial, params={}, started=0))
        process.wait(timeout=20)
        assert set(host_processes()) <= others  # Ray does not restart it


@pytest.mark.slow
def test_a_host_that_waits_for_its_node_ends_before_one_that_is_idle(
    load: Callable[..., SweepConfig], make_trial: Callable[..., TrialConfig]
) -> None:
    """Trials that are left would else wait for that node, which may never come."""
    config = load("search.full=null", "resources.lora={cpus_per_worker: 1, slots: 1}")
    trials = [
        make_trial(trial_id=name, train={"steps": 10_000, "report_every": 10_000})
        for name in ("first", "second", "over")
    ]
    with HostPool(config, {"CPU": 3.0}, lambda *point: make_trial(), {}, print) as pool:
        hosts = pool.ready(samples=8, most_at_once=lambda: 2)
        assert hosts is not None
        late = next(actor for actor in hosts.actors if not has_process(actor))
        up = set(hosts.actors) - {late}
        assert len(up) == 2
        joined = {_join(hosts, trials[0], "a")}
        pool.trial_ended(TrialRecord(config=trials[2], params={}, started=0))
        joined.add(_join(hosts, trials[1], "b"))
        assert joined == up
        with pytest.raises(RayActorError):
            ray.get(late.load.remote(), timeout=10)


def test_a_host_that_is_lost_while_it_loads_the_model_is_asked_again(
    make_trial: Callable[..., TrialConfig],
) -> None:
    class SlotHostUpSlowly(SlotHostActor):
        def __init__(self) -> None:
            time.sleep(3)
            super().__init__()

    # Those of an earlier test may still be ending.
    others = set(host_processes())
    slow = ray.remote(SlotHostUpSlowly)
    actor = slow.options(num_cpus=0.5, max_restarts=-1, max_concurrency=10).remote()
    try:
        ray.get(actor.load.remote())
        (process,) = set(host_processes()) - others
        with ThreadPoolExecutor() as pool:
            asked = "why_not_packed", (make_trial(),), {"CPU": 0.5}, print
            answer = pool.submit(answer_of, [actor], *asked)
            time.sleep(0.5)  # it loads the model
            process.kill()
            assert answer.result(timeout=120) is None
        assert life_of(actor) == ("ALIVE", 1)
    finally:
        ray.kill(actor)
