"""Slots under Tune: each trial is an ordinary one, and measures what it does by itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import ray
from killed_trials import HostKiller, host_processes
from measured import OF_THE_PROCESS
from ray.exceptions import RayActorError

from trainables.packing.host import MEASUREMENT
from trainables.packing.packed_client import PackedClient
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from trainables.workers.packed_trials import (
    SlotHostActor,
    SlotHosts,
    _join,
    start_slot_host,
)
from tune.cluster.slot_hosts import HostPool
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
        assert pool.ready(samples=8) is None
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
