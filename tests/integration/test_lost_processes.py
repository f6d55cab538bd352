"""Trials whose process is killed, or that are stopped, under Tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import told_by
from killed_trials import ONE_TRIAL, Killer, history

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.evaluation.base import Base
    from trainables.records.schema import TrialRecord
    from tune.config.sweep_config import SweepConfig

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def run_sweep(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> Callable[..., tuple[SweepOutcome, Ledger]]:
    def run_sweep(
        *overrides: str, listener: SweepListener | None = None, name: str = "sweep"
    ) -> tuple[SweepOutcome, Ledger]:
        sweep = Sweep(load(*overrides), tmp_path / name, base_cache)
        return sweep.run([listener or SweepListener()]), Ledger(tmp_path / name)

    return run_sweep


def test_killed_trial_goes_on_elsewhere_and_measures_the_same(
    run_sweep: Callable[..., tuple[SweepOutcome, Ledger]],
) -> None:
    _, undisturbed = run_sweep(*ONE_TRIAL, name="undisturbed")
    killer = Killer(step=10, attempts=1)
    outcome, ledger = run_sweep(*ONE_TRIAL, listener=killer, name="killed")
    (record,) = outcome.records
    assert (record.status, record.attempt, record.failures) == (TrialStatus.COMPLETE, 2, 0)
    assert [interrupted.attempt for interrupted in killer.interrupted] == [1]
    assert history(ledger) == history(undisturbed)
    assert record.weights_dir is not None
    assert "attempt_2" in record.weights_dir


def test_trial_that_dies_again_and_again_fails_at_the_limit(
    run_sweep: Callable[..., tuple[SweepOutcome, Ledger]],
) -> None:
    killer = Killer(step=1, attempts=9)
    outcome, ledger = run_sweep(*ONE_TRIAL, "budget.retries=1", listener=killer)
    (record,) = outcome.records
    assert record.status is TrialStatus.FAILED
    assert record.failures == 2
    assert "its worker process has died" in (record.reason or "")
    assert ledger.trials() == outcome.records


@pytest.mark.slow
def test_a_trial_that_ray_kills_for_its_node_s_memory_goes_on(
    base: Base, base_cache: Path, tmp_path: Path
) -> None:
    """It was the end of the whole sweep: Tune does not know the error's type."""
    script = Path(__file__).with_name("sweep_short_of_host_memory.py")
    told = told_by(script, tmp_path / "sweep", base_cache, *ONE_TRIAL)
    assert told == [TrialStatus.COMPLETE, 2, 0]


EARLY_STOPPING = (
    "search={lora: {rank: 8, alpha: 16, learning_rate: [3.0e-3, 1.0e-3, 1.0e-6, 1.0e-7]}}",
    "sampler=grid",
    "budget.trials=4",
    "seed=4",  # the best first
    "resources.max_concurrent=1",
    "train.steps=24",
    "train.report_every=8",
    "early_stopping={metrics: {validation/loss: -1}, reduction_factor: 2, first_rung: 0.3}",
)


def test_bad_trials_are_stopped_early_and_told_so(
    run_sweep: Callable[..., tuple[SweepOutcome, Ledger]],
) -> None:
    outcome, ledger = run_sweep(*EARLY_STOPPING)
    statuses = {r.config.learning_rate: r.status for r in outcome.records}
    assert statuses[3e-3] is TrialStatus.COMPLETE
    stopped = [r for r in outcome.records if r.status is TrialStatus.STOPPED_EARLY]
    assert stopped
    for record in stopped:
        assert record.last is not None
        assert record.last.step in (8, 16)
        assert f"at step {record.last.step}" in (record.reason or "")
        assert ledger.measurements(record.number)[-1] == record.last

    # As a driver leaves it that dies between the decision and its record.
    unwritten = {"status": TrialStatus.RUNNING, "reason": None, "ended": None, "last": None}
    for record in stopped:
        ledger.write_trial(record.model_copy(update=unwritten))
    again, _ = run_sweep(*EARLY_STOPPING)
    assert [told(record) for record in again.records] == [told(r) for r in outcome.records]


def told(record: TrialRecord) -> dict[str, object]:
    return record.model_dump(exclude={"ended"})
