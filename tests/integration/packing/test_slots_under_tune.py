"""Slots under Tune: each trial is an ordinary one, and measures what it does by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest
import ray
from killed_trials import HostKiller, host_processes
from measured import OF_THE_PROCESS
from ray.exceptions import RayActorError

from trainables.packing.host import MEASUREMENT
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from trainables.training.adapter_sft import train_adapter
from trainables.training.reporter import ListReporter
from trainables.workers.packed_trials import (
    SlotHostActor,
    SlotHosts,
    _join,
    start_slot_host,
)
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement
    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")

TWO_TRIALS = (
    "search={lora: {rank: [4, 8], alpha: 8, learning_rate: 1.0e-3}}",
    "sampler=grid",
    "budget.trials=2",
    "train.steps=6",
    "train.report_every=2",
    "resources.lora.slots=2",
)


def metrics_of_training(measurement: Measurement) -> dict[str, float]:
    """Without those of the process, and the norm, which is rounded otherwise."""
    return {
        key: value
        for key, value in measurement.metrics.items()
        if not key.startswith(OF_THE_PROCESS) and key != "train/grad_norm"
    }


def test_trials_of_a_host_that_dies_go_on_and_measure_what_they_do_by_themselves(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> None:
    killer = HostKiller(step=3)
    outcome = Sweep(load(*TWO_TRIALS), tmp_path / "sweep", base_cache).run([killer])
    ledger = Ledger(tmp_path / "sweep")
    assert killer.killed
    assert killer.interrupted
    assert {record.status for record in outcome.records} == {TrialStatus.COMPLETE}
    assert 2 in {record.attempt for record in outcome.records}
    assert all(record.weights_dir for record in outcome.records)
    assert not list(ledger.folder.root.rglob("checkpoints"))
    _, alive = psutil.wait_procs(host_processes(), timeout=20)
    assert not alive
    for record in outcome.records:
        measurements = ledger.measurements(record.number)
        assert [m.step for m in measurements] == list(range(1, 7))
        alone = ListReporter()
        place = {"output_dir": str(tmp_path / str(record.number)), "earlier_attempts": ()}
        train_adapter(record.config.model_copy(update=place), alone)
        trained = next(m for m in alone.measurements if m.step == 6)
        expected = metrics_of_training(trained)
        assert metrics_of_training(measurements[-1]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_an_earlier_attempt_that_nobody_listens_to_leaves_its_host(
    make_trial: Callable[..., TrialConfig],
) -> None:
    """A trial's own process may die while its host lives; its next attempt may go to another."""
    hosts = SlotHosts(tuple(start_slot_host({"CPU": 0.5}) for _ in range(2)), 2, ("lora",))
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


@pytest.mark.slow
def test_a_host_that_can_never_start_is_left_out_and_trials_do_not_wait_for_none(
    make_trial: Callable[..., TrialConfig],
) -> None:
    broken = {"conda": "no_such_environment"}
    never = ray.remote(SlotHostActor).options(num_cpus=0.5, runtime_env=broken).remote()
    up = start_slot_host({"CPU": 0.5})
    try:
        assert _join(SlotHosts((never, up), 1, ("lora",)), make_trial(), "a") == up
    finally:
        ray.kill(up)
    with pytest.raises(RayActorError, match="all slot hosts have ended"):
        _join(SlotHosts((never, up), 1, ("lora",)), make_trial(), "a")
