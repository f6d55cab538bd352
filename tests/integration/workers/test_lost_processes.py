"""Trials whose process is killed, under Tune."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import told_by
from killed_trials import ONE_TRIAL, Killer, history

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.evaluation.base_scores import Base
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


def test_a_trial_whose_checkpoint_is_deleted_before_it_is_read_goes_on_from_the_one_before(
    run_sweep: Callable[..., tuple[SweepOutcome, Ledger]],
) -> None:
    """As by an attempt that lives on behind a cut network; it was the end of the trial."""

    def chooses_too_early(config: dict[str, Any]) -> None:
        from trainables.training.checkpointing import Checkpoints
        from trainables.workers.trainable import run_trial

        start = Checkpoints.start

        def start_late(checkpoints: Any, *arguments: Any) -> None:
            start(checkpoints, *arguments)
            if config["attempt"] == 2:
                shutil.rmtree(checkpoints._resumed)

        Checkpoints.start = start_late
        run_trial(config)

    alone = (*ONE_TRIAL, "resources.lora.slots=0")
    _, undisturbed = run_sweep(*alone, name="undisturbed")
    outcome, ledger = run_sweep(
        *alone, listener=Killer(step=10), name="killed", trainable=chooses_too_early
    )
    (record,) = outcome.records
    ended = (record.status, record.reason, record.attempt, record.failures)
    assert ended == (TrialStatus.COMPLETE, None, 3, 1)
    assert history(ledger) == history(undisturbed)


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


@pytest.mark.slow
def test_a_trial_that_ray_kills_for_its_node_s_memory_goes_on(
    base: Base, base_cache: Path, tmp_path: Path
) -> None:
    """It was the end of the whole sweep: Tune does not know the error's type."""
    script = Path(__file__).parents[1].joinpath("sweep_short_of_host_memory.py")
    told = told_by(script, tmp_path / "sweep", base_cache, *ONE_TRIAL)
    assert told == [TrialStatus.COMPLETE, 2, 0]
