"""Trials whose process is killed, under Tune."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from killed_trials import ONE_TRIAL, Killer, history

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def run_sweep(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> Callable[..., tuple[SweepOutcome, Ledger]]:
    def run_sweep(
        *overrides: str, listener: SweepListener | None = None, name: str = "sweep", **options: Any
    ) -> tuple[SweepOutcome, Ledger]:
        sweep = Sweep(load(*overrides), tmp_path / name, base_cache, **options)
        return sweep.run([listener or SweepListener()]), Ledger(tmp_path / name)

    return run_sweep


@pytest.mark.slow
def test_killed_trial_goes_on_elsewhere_and_measures_the_same(
    run_sweep: Callable[..., tuple[SweepOutcome, Ledger]],
) -> None:
    _, undisturbed = run_sweep(*ONE_TRIAL, name="undisturbed")
    killer = Killer(step=10)
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
    def dies(config: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    outcome, ledger = run_sweep(*ONE_TRIAL, "budget.retries=1", trainable=dies)
    (record,) = outcome.records
    assert record.status is TrialStatus.FAILED
    assert record.failures == 2
    assert "its worker process has died" in (record.reason or "")
    assert ledger.trials() == outcome.records
