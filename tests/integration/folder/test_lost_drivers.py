"""Drivers are killed again and again, and nothing is lost.

The trials are fake, so that a driver lives for seconds; the sweep, Tune, Ray and ledger are real.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.search.searcher import OptunaSearcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")

HERE = Path(__file__).parents[1]
CHANGES = (
    "budget.trials=4",
    "budget.retries=1000",
    "resources.lora.cpus_per_worker=0.5",
    "resources.full.cpus_per_worker=0.5",
)
# Side by side trials end in an order of their own; a sampler that learns would follow it.
SIDE_BY_SIDE = ("sampler=random", "resources.max_concurrent=2")
ONE_BY_ONE = (
    "sampler=tpe",
    "resources.max_concurrent=1",
    "early_stopping={metrics: {in_domain/acc_mean: 1}, reduction_factor: 2, first_rung: 0.3}",
)


class Drivers:
    """Starts drivers of fake sweeps, one at a time."""

    def __init__(self, base_cache: Path) -> None:
        self._base_cache = base_cache
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "fake_sweep.py"), ray.get_runtime_context().gcs_address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder: Path, overrides: tuple[str, ...]) -> int:
        """Process id of a new driver."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = json.dumps([str(folder), str(self._base_cache), *overrides])
        self._server.stdin.write(request + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Exit code of the driver, once it has ended."""
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


@pytest.fixture(scope="module")
def drivers(cluster: None, base_dir: Path, base_cache: Path) -> Iterator[Drivers]:
    drivers = Drivers(base_cache)
    yield drivers
    drivers.close()


def results(ledger: Ledger) -> dict[int, Any]:
    return {
        record.number: (
            record.params,
            record.status,
            record.reason,
            {m.step: m.metrics for m in ledger.measurements(record.number)},
        )
        for record in ledger.trials()
    }


def executed(folder: Path, number: int) -> int:
    """Steps that all attempts of a trial ran together."""
    return sum(len(f.read_text().splitlines()) for f in folder.glob(f"trials/{number:04d}/*/steps"))


def final(ledger: Ledger) -> dict[int, tuple[TrialRecord, int]]:
    """Trials that have ended, and how much they ran."""
    return {
        record.number: (record, executed(ledger.folder.root, record.number))
        for record in ledger.trials()
        if record.status is not TrialStatus.RUNNING
    }


def check_ledger(ledger: Ledger, before: dict[int, tuple[TrialRecord, int]]) -> None:
    """Nothing that had ended has changed or run again; every history is whole."""
    after = final(ledger)
    assert {number: after.get(number) for number in before} == before
    for record in ledger.trials():
        steps = [m.step for m in ledger.measurements(record.number)]
        assert steps == list(range(1, len(steps) + 1))


def check_study(ledger: Ledger, config: SweepConfig) -> None:
    """One trial for each record, none left running, on disk and when rebuilt."""
    records = ledger.trials()
    ids = [record.config.trial_id for record in records]
    storage = JournalStorage(JournalFileBackend(str(ledger.folder.study)))
    exported = optuna.load_study(study_name=config.name, storage=storage).trials
    rebuilt = OptunaSearcher(config, lambda *_: pytest.fail("asked"), records).study.trials
    for trials in (exported, rebuilt):
        assert sorted(trial.user_attrs["trial_id"] for trial in trials) == ids
        assert TrialState.RUNNING not in {trial.state for trial in trials}


def run_killing(
    drivers: Drivers, folder: Path, overrides: tuple[str, ...], life: float, rng: random.Random
) -> tuple[int, int]:
    """Start the same sweep until a driver gets to its end, killing each at a random moment.

    Returns:
        Number of kills, and of finished trials that a later driver found.
    """
    ledger, kills, found = Ledger(folder), 0, 0
    while True:
        before = final(ledger)
        found += len(before)
        process = drivers.start(folder, overrides)
        killer = threading.Timer(rng.uniform(0.1, life), os.kill, (process, signal.SIGKILL))
        killer.start()
        code = drivers.wait()
        killer.cancel()
        check_ledger(ledger, before)
        if code == 0:
            return kills, found
        assert code == -signal.SIGKILL
        kills += 1
        life *= 1.25  # on a machine that has become slower none would get to the end


@pytest.mark.parametrize(
    ("kind", "wanted", "longest"),
    [
        pytest.param(SIDE_BY_SIDE, 1, 0.8, id="side by side"),
        pytest.param(ONE_BY_ONE, 2, 0.5, id="one by one", marks=pytest.mark.slow),
        pytest.param(SIDE_BY_SIDE, 100, 0.5, id="often", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(1800)
def test_killed_drivers_lose_nothing(
    drivers: Drivers,
    tmp_path: Path,
    load: Callable[..., SweepConfig],
    kind: tuple[str, ...],
    wanted: int,
    longest: float,
) -> None:
    overrides, undisturbed = (*CHANGES, *kind), tmp_path / "undisturbed"
    began = time.monotonic()
    drivers.start(undisturbed, overrides)
    assert drivers.wait() == 0
    life = longest * (time.monotonic() - began)
    rng, kills, found, sweeps = random.Random(2 * wanted), 0, 0, 0
    while kills < wanted or not found:
        folder = tmp_path / f"killed{sweeps}"
        folder.mkdir()
        shutil.copy(undisturbed / "sweep.json", folder)  # it need not evaluate the base
        shutil.copytree(undisturbed / "base", folder / "base")
        more_kills, more_found = run_killing(drivers, folder, overrides, life, rng)
        assert results(Ledger(folder)) == results(Ledger(undisturbed))
        check_study(Ledger(folder), load(*overrides))
        kills, found, sweeps = kills + more_kills, found + more_found, sweeps + 1
