"""Measures what `scale.py` cannot simulate, on a Ray of this machine, and checks the rest.

    python tests/benchmarks/scale_on_ray.py

The timings are those of the class `Timings`. How long a trial takes to begin: trials of a
quickstart sweep run one after another on one actor that is reused. For the first it counts from
the sweep's start, base evaluation left out, for the others from the end of the trial before, until
a trial has measured at its first step. That holds processes, imports, model and data, and what
Tune and the driver take. What Ray's core takes of the driver: processor seconds of the whole
process, less what it takes when nothing happens, for calling an actor's method, for waiting for
one of many calls, and for fetching a report of a trial's size. Between two of each is a pause, as
in a driver, after which they take thrice as long as in a row.

The check is a real sweep of short trials, which sleep between reports where others train, beside
the same sweep simulated. Prints all as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

PATHS = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]
sys.path[:1] = PATHS

os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)  # of the trials' processes
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ray  # noqa: E402
import ray.tune  # noqa: E402
from benchmarks.scale import SETTINGS, measured  # noqa: E402
from benchmarks.scale_clock import DriverClock  # noqa: E402
from benchmarks.scale_cluster import BUSY, SimulatedCluster, Timings, Usage  # noqa: E402
from benchmarks.scale_history import training  # noqa: E402
from benchmarks.scale_sweep import SimulatedSweep  # noqa: E402
from benchmarks.warm_workers import Starts  # noqa: E402

from trainables.config import TrialConfig  # noqa: E402
from trainables.records.record_paths import SweepFolder  # noqa: E402
from trainables.records.schema import Measurement, TrialRecord, TrialStatus  # noqa: E402
from trainables.workers.reporters import MEASUREMENT  # noqa: E402
from tune.cluster.ray_cluster import ray_cluster  # noqa: E402
from tune.config.sweep_file import load_sweep  # noqa: E402
from tune.listeners import SweepListener  # noqa: E402
from tune.search.space import largest_point  # noqa: E402
from tune.search.trial_ids import TrialMaker  # noqa: E402
from tune.sweep import Sweep  # noqa: E402

FEW, MANY = 8, 512
ROUNDS, PAUSE = 100, 0.05
SIDE_BY_SIDE, TRIALS, SECONDS = 4, 28, 12.0  # of the check's trials


class Actor:
    """Answers at once, or never."""

    async def answer(self, value: Any = None) -> Any:
        return value

    async def never(self) -> None:
        await asyncio.Event().wait()


def starts(folder: Path, trials: int = 6) -> dict[str, float]:
    """Seconds until a trial has measured at its first step."""
    config = load_sweep(
        "quickstart",
        [
            "search={lora: {rank: 8, alpha_ratio: 2, learning_rate: {low: 1.0e-4, high: 1.0e-2}}}",
            f"budget.trials={trials}",
            "early_stopping=null",
            "resources.max_concurrent=1",
            "train={steps: 10, batch_size: 8, micro_batch_size: 8, report_every: 10, log_every: 1}",
            "eval.limit=20",
        ],
    )
    listener = Starts()
    outcome = Sweep(config, folder / "starts", folder / "base").run([listener])
    assert {record.status for record in outcome.records} == {TrialStatus.COMPLETE}
    fresh, *reused = (listener.seconds[number] for number in sorted(listener.seconds))
    return {"fresh": fresh, "reused": median(reused)}


def costs(trial: TrialConfig) -> dict[str, float]:
    """Processor seconds that Ray's core takes of the driver."""
    config = {"trial": trial.model_dump(mode="json"), "attempt": 1, "params": {}, "confirms": None}
    report = next(training(config))[1] | {"config": config}
    actor = ray.remote(num_cpus=0, max_concurrency=2 * MANY)(Actor).remote()
    answers = [actor.answer.remote(report) for _ in range(ROUNDS)]
    pending = [actor.never.remote() for _ in range(MANY)]
    ray.wait(answers, num_returns=ROUNDS)
    nothing = each(lambda: None)
    seconds = {
        "call": each(lambda: actor.answer.remote(config)) - nothing,
        "get": each(lambda: ray.get(answers.pop())) - nothing,
    }
    few, many = (
        each(lambda count=count: ray.wait(pending[:count], timeout=0.01)) - nothing
        for count in (FEW, MANY)
    )
    slope = (many - few) / (MANY - FEW)
    return {**seconds, "wait": few - FEW * slope, "wait_for_each": slope}


def each(call: Callable[[], Any]) -> float:
    """Processor seconds of one call, and of the pause after it."""
    began = time.process_time()
    for _ in range(ROUNDS):
        call()
        time.sleep(PAUSE)
    return (time.process_time() - began) / ROUNDS


def fsync(folder: Path) -> float:
    """Seconds until a line is on the disk."""
    seconds = []
    with (folder / "log").open("ab") as file:
        for _ in range(ROUNDS):
            file.write(b"x" * 300)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return median(seconds)


def sleep_and_report(config: dict[str, Any]) -> None:
    """A trial of the real sweep."""
    for seconds, report in training(config, minutes=SECONDS / 60):
        time.sleep(seconds)
        if MEASUREMENT in report:
            report[MEASUREMENT]["time"] = time.time()
            report[MEASUREMENT]["metrics"]["time/train_s"] = seconds
        ray.tune.report(report)


class RealWindow(SweepListener):
    """What a real sweep did from the end of its first trials on to that of its first last one."""

    def __init__(self) -> None:
        self._usage = Usage()
        self._reports = 0
        self._at_end: list[tuple[float, float, int]] = []

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        self._reports += 1
        seconds = measurement.metrics["time/train_s"]
        self._usage.add(BUSY, measurement.time - seconds, measurement.time)

    def trial_ended(self, record: TrialRecord) -> None:
        self._at_end.append((time.time(), time.process_time(), self._reports))

    def figures(self) -> dict[str, float]:
        first, last = self._at_end[SIDE_BY_SIDE], self._at_end[-SIDE_BY_SIDE]
        seconds, spent, reports = (b - a for a, b in zip(first, last, strict=True))
        busy = self._usage.between(first[0], last[0])[BUSY]
        return {
            "share_of_a_core": spent / seconds,
            "reports_a_second": reports / seconds,
            "idle_share": 1 - busy / (SIDE_BY_SIDE * seconds),
        }


def real_sweep(folder: Path) -> dict[str, float]:
    """A sweep of short trials on the local Ray."""
    listener = RealWindow()
    config = load_sweep(
        "quickstart",
        [
            "sampler=random",
            "early_stopping=null",
            f"budget.trials={TRIALS}",
            f"resources.max_concurrent={SIDE_BY_SIDE}",
            "resources.lora.cpus_per_worker=0.1",
            "resources.full.cpus_per_worker=0.1",
        ],
    )
    Sweep(config, folder / "real", folder / "base", trainable=sleep_and_report).run([listener])
    return listener.figures()


def simulated_sweep(folder: Path, timings: Timings) -> dict[str, float]:
    """The same."""
    settings = [*SETTINGS, "early_stopping={first_rung: 0.99}", "sampler=random"]  # ends none
    clock = DriverClock()
    cluster = SimulatedCluster(clock, timings, partial(training, minutes=SECONDS / 60))
    with cluster.in_place_of_ray(folder):
        with clock.stopped():
            config = load_sweep("quickstart", settings)
            sweep = SimulatedSweep(config, folder, cluster, SIDE_BY_SIDE, finished=0)
        window = measured(sweep, cluster, SIDE_BY_SIDE, SIDE_BY_SIDE, TRIALS)
    return {
        "share_of_a_core": window.shares_of_a_core()["all"],
        "reports_a_second": window.reports / window.seconds,
        "idle_share": window.idle_share,
    }


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        config = load_sweep("quickstart", [])
        make_trial = TrialMaker(config, "s", SweepFolder(folder), {})
        trial = make_trial(0, largest_point(config, "lora"), 1, 0)
        load = os.getloadavg()[0]
        with ray_cluster(None):
            timings = Timings(**starts(folder), **costs(trial), fsync=fsync(folder))
            real = real_sweep(folder)
        simulated = simulated_sweep(folder / "simulated", replace(timings, reused=0.0))
    found = {
        "machine": {"name": platform.machine(), "cores": os.cpu_count(), "load": load},
        "timings": vars(timings),
        "check": {"real": real, "simulated": simulated},
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
