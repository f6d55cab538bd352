"""The proof: drivers and trial processes are killed again and again, and nothing is lost.

The trials are fake, so that a life takes seconds; the sweep, Tune, Ray and the ledger are real.
`pytest tests/integration/folder/test_lost_drivers.py` kills four drivers; with `-m slow`, 200
drivers and 20 processes of trials.
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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import ray
from killed_trials import kill_trial_processes
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
TRIALS = 12
CHANGES = (
    f"budget.trials={TRIALS}",
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


@dataclass
class Tally:
    """What was counted over all lives."""

    kills: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    trials: int = 0
    attempts: int = 0
    completed_before_a_kill: int = 0

    def __str__(self) -> str:
        return (
            f"{dict(self.kills)} over {self.sweeps} sweeps of {self.trials} trials; "
            f"{self.attempts} attempts; {self.completed_before_a_kill} times a finished trial was "
            "checked after a restart; lost 0, run twice 0"
        )


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


def take_base_from(undisturbed: Path, killed: Path) -> None:
    """Spare the second sweep of a pair the seconds of its base: as if killed right after it."""
    killed.mkdir()
    shutil.copy(undisturbed / "sweep.json", killed)
    shutil.copytree(undisturbed / "base", killed / "base")


def run_killing(
    drivers: Drivers,
    folder: Path,
    overrides: tuple[str, ...],
    longest_life: float,
    rng: random.Random,
    tally: Tally,
) -> None:
    """Start the same sweep until a driver gets to its end, killing each at a random moment."""
    ledger = Ledger(folder)
    while True:
        before = final(ledger)
        tally.completed_before_a_kill += len(before)
        process = drivers.start(folder, overrides)
        killer = threading.Timer(rng.uniform(0.1, longest_life), os.kill, (process, signal.SIGKILL))
        killer.start()
        code = drivers.wait()
        killer.cancel()
        check_ledger(ledger, before)
        if code == 0:
            return
        assert code == -signal.SIGKILL
        tally.kills["drivers"] += 1
        longest_life *= 1.25  # on a machine that has become slower none would get to the end


def prove(
    drivers: Drivers, tmp_path: Path, load: Callable[..., SweepConfig], kills: int, seed: int
) -> Tally:
    """Kill drivers of two sweeps, over and over, and compare each with its undisturbed run."""
    rng, tally = random.Random(seed), Tally()
    undisturbed: list[tuple[Path, float]] = []
    kinds = [(*CHANGES, *kind) for kind in (SIDE_BY_SIDE, ONE_BY_ONE)]
    for number, overrides in enumerate(kinds):
        started = time.monotonic()
        drivers.start(tmp_path / f"undisturbed{number}", overrides)
        assert drivers.wait() == 0
        undisturbed.append((tmp_path / f"undisturbed{number}", time.monotonic() - started))
    # None may have been killed yet that had a finished trial to lose.
    while (
        tally.sweeps < len(kinds)
        or tally.kills["drivers"] < kills
        or tally.completed_before_a_kill == 0
    ):
        kind = tally.sweeps % len(kinds)
        folder, duration = undisturbed[kind]
        killed = tmp_path / f"killed{tally.sweeps}"
        take_base_from(folder, killed)
        run_killing(drivers, killed, kinds[kind], duration * 0.35, rng, tally)
        ledger = Ledger(killed)
        assert results(ledger) == results(Ledger(folder))
        check_study(ledger, load(*kinds[kind]))
        tally.sweeps += 1
        tally.trials += len(ledger.trials())
        tally.attempts += sum(record.attempt for record in ledger.trials())
    return tally


@pytest.mark.parametrize(
    "kills", [4, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.timeout(600)
def test_killed_drivers_lose_nothing(
    drivers: Drivers,
    tmp_path: Path,
    load: Callable[..., SweepConfig],
    capsys: pytest.CaptureFixture[str],
    kills: int,
) -> None:
    tally = prove(drivers, tmp_path, load, kills, seed=kills)
    with capsys.disabled():
        print(f"\nkilled {tally}")
    assert tally.kills["drivers"] >= kills
    assert tally.completed_before_a_kill > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_trial_processes_lose_nothing(
    drivers: Drivers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, kills, attempts, sweeps, wanted = random.Random(0), 0, 0, 0, 20
    overrides = (*CHANGES, *SIDE_BY_SIDE)
    drivers.start(tmp_path / "undisturbed", overrides)
    assert drivers.wait() == 0

    def kill(ended: threading.Event) -> None:
        nonlocal kills
        while not ended.wait(rng.uniform(0.2, 1.0)):
            if kills < wanted:
                kills += kill_trial_processes()

    while kills < wanted:  # a machine may be through before
        ledger, ended = Ledger(tmp_path / f"killed{sweeps}"), threading.Event()
        take_base_from(tmp_path / "undisturbed", ledger.folder.root)
        drivers.start(ledger.folder.root, overrides)
        killer = threading.Thread(target=kill, args=[ended])
        killer.start()
        code = drivers.wait()
        ended.set()
        killer.join()
        assert code == 0
        check_ledger(ledger, {})
        assert results(ledger) == results(Ledger(tmp_path / "undisturbed"))
        attempts += sum(record.attempt for record in ledger.trials())
        sweeps += 1
    trials = sweeps * TRIALS
    assert attempts > trials
    with capsys.disabled():
        print(f"\nkilled {kills} trial processes; {attempts} attempts of {trials} trials; lost 0")
