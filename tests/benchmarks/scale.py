"""A sweep on 8 to 512 GPUs, and with 100 to 10,000 finished trials: what it costs its driver, and
how much of the GPUs' time is lost between trials.

    python tests/benchmarks/scale.py [--to scale.json]

The driver is real: the search, the early stopping, the ledger, the console's lines, and Tune's own
controller with its actor manager. The cluster is not. Whole
trainings last 20 minutes on average and report ten times; the early stopping ends some sooner.
They pass in virtual time, which for the driver, one thread, goes on by the processor seconds that
it really takes; so trials that want something of it at once wait for one another, and each stands
still from a report until Tune has answered it, as a real one does. What cannot be simulated, such
as how long a trial takes to begin, is in `Timings` of scale_cluster.py.

All is measured in the middle of a sweep: when the simulation begins, so many trials are finished,
and as many as there are GPUs are somewhere on their way. First a twelfth as many trials as there
are GPUs must end, eight at least, which leaves behind that all of them started at once; then it
counts until 80 more have. There is always a next trial. So the idle share is that of any time but
the first and the last minutes of a sweep. It is 1 - busy / (GPUs x seconds): a GPU is busy from the
call that lets a trial train on until it reports. For the rest, either the next trial is starting
on it, or it waits for the driver.

On paper: what a GPU loses between two trials is what the next takes to begin and what the driver
takes for their ends, beginnings and reports, each of which counts the more the shorter the trials
are; and the driver serves the fewer GPUs, in the same proportion. How many GPUs with trials of this
length would leave it no time is in the figures. Near there they wait for one another, as the last
line of the table shows: with trainings of 5 minutes, 512 GPUs, and TPE, which weighs all finished
trials for each suggestion.

Left out are W&B, most of which is a process of its own, and Ray's placement groups, which a reused
actor keeps. The console's live table is a thread of its own, which draws twice a second: what a
picture takes is measured alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path[:1] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]

# As `tune.cluster.ray_cluster` sets them.
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "inf"

from benchmarks.scale_clock import OURS, RAY, SAMPLER, TUNE, DriverClock  # noqa: E402
from benchmarks.scale_cluster import (  # noqa: E402
    BUSY,
    NOTHING,
    REPORT,
    STARTING,
    TRIAL,
    SimulatedCluster,
    Timings,
)
from benchmarks.scale_history import MINUTES, training  # noqa: E402
from benchmarks.scale_sweep import SimulatedSweep  # noqa: E402

from tune.config.sweep_file import load_sweep  # noqa: E402

SIZES = [(8, 100), (64, 100), (512, 100), (512, 1000), (512, 10_000)]  # GPUs, finished trials
SAMPLERS = ("tpe", "random")
ENDS = 80
MOST_IDLE = 0.02
SETTINGS = (
    "budget.trials=1000000",
    "resources.lora.gpus_per_worker=1",
    "resources.full.gpus_per_worker=1",
    "early_stopping={}",
)


@dataclass(frozen=True)
class Point:
    """One size of a sweep.

    Attributes:
        finished: trials that it has behind it.
        minutes: that a whole training takes on average.
    """

    sampler: str
    gpus: int
    finished: int
    minutes: float = MINUTES

    @property
    def first_ends(self) -> int:
        """Trials that end before anything is measured."""
        return max(8, self.gpus // 12)


@dataclass(frozen=True)
class Window:
    """What has happened in a part of a simulation.

    Attributes:
        seconds: how long it lasted, in virtual time.
        usage: GPU-seconds by kind.
        spent: the driver's processor seconds by kind of event and by whose code it was.
    """

    gpus: int
    seconds: float
    ends: int
    reports: int
    usage: Counter[str]
    spent: Counter[tuple[str, str]]

    @property
    def idle_share(self) -> float:
        """Of the GPUs' time."""
        return 1 - self._share(BUSY)

    @property
    def starting_share(self) -> float:
        """Of the GPUs' time, that in which their next trial was about to be ready."""
        return self._share(STARTING)

    def milliseconds(self, kind: str, count: int) -> dict[str, float]:
        """Of the driver, for each of so many events."""
        owners = (SAMPLER, OURS, TUNE, RAY)
        return {owner: round(1e3 * self.spent[kind, owner] / count, 2) for owner in owners}

    def shares_of_a_core(self) -> dict[str, float]:
        """What the driver takes of one, in all and by what it does."""
        seconds = {
            "all": sum(self.spent.values()),
            "trials": self._seconds(TRIAL),
            "reports": self._seconds(REPORT),
            "polling": self._seconds(NOTHING),
        }
        return {name: round(spent / self.seconds, 4) for name, spent in seconds.items()}

    @property
    def gpus_that_fill_a_core(self) -> int:
        """On paper: at such costs, so many GPUs take all of it."""
        spent = self._seconds(TRIAL) + self._seconds(REPORT)
        return round(self.gpus * self.seconds / spent)

    def _seconds(self, kind: str) -> float:
        return sum(self.spent[kind, owner] for owner in (SAMPLER, OURS, TUNE, RAY))

    def _share(self, kind: str) -> float:
        return self.usage[kind] / (self.gpus * self.seconds)


def points(samplers: Sequence[str]) -> list[Point]:
    """All that are measured; the last shows what the trials' length means where it is hardest."""
    sizes = [Point(sampler, gpus, finished) for sampler in samplers for gpus, finished in SIZES]
    return [*sizes, Point("tpe", *SIZES[-1], minutes=5.0)] if "tpe" in samplers else sizes


def measured(
    sweep: SimulatedSweep, cluster: SimulatedCluster, gpus: int, first_ends: int, ends: int
) -> Window:
    """Let so many trials end, and look at what happens until so many more have."""
    sweep.run(first_ends)
    counts = sweep.counts
    ends_before, reports, begin, spent = (
        counts.ends,
        counts.reports,
        cluster.clock.now(),
        cluster.clock.spent.copy(),
    )
    sweep.run(first_ends + ends)
    end = cluster.clock.now()
    return Window(
        gpus=gpus,
        seconds=end - begin,
        ends=counts.ends - ends_before,
        reports=counts.reports - reports,
        usage=cluster.usage.between(begin, end),
        spent=cluster.clock.spent - spent,
    )


def simulate(point: Point, timings: Timings) -> dict[str, Any]:
    """The figures of one size."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns of what is slow in real time
    config = load_sweep("quickstart", [*SETTINGS, f"sampler={point.sampler}"])
    clock = DriverClock()
    cluster = SimulatedCluster(clock, timings, partial(training, minutes=point.minutes))
    with TemporaryDirectory() as name, cluster.in_place_of_ray(Path(name)):
        with clock.stopped():
            sweep = SimulatedSweep(config, Path(name), cluster, point.gpus, point.finished)
        window = measured(sweep, cluster, point.gpus, point.first_ends, ENDS)
        picture = sweep.picture_seconds()
    return {
        **asdict(point),
        "window_minutes": round(window.seconds / 60, 1),
        "minutes_a_trial": round(window.usage[BUSY] / window.ends / 60, 1),
        "milliseconds_a_trial": window.milliseconds(TRIAL, window.ends),
        "milliseconds_a_report": window.milliseconds(REPORT, window.reports),
        "share_of_a_core": window.shares_of_a_core(),
        "gpus_that_fill_a_core": window.gpus_that_fill_a_core,
        "milliseconds_a_picture": round(1e3 * picture, 1),
        "peak_memory_mib": peak_memory(),
        "idle_share": round(window.idle_share, 5),
        "idle_starting": round(window.starting_share, 5),
        "idle_waiting_for_driver": round(window.idle_share - window.starting_share, 5),
        "idle_is_under_2_percent": window.idle_share < MOST_IDLE,
    }


def peak_memory() -> int:
    """MiB of this process; what `getrusage` gives began before the process was another's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) >> 10


def show(figures: dict[str, Any]) -> None:
    """Print one line of the table."""
    a_trial, a_report = figures["milliseconds_a_trial"], figures["milliseconds_a_report"]
    parts = "/".join(f"{a_trial[owner]:.0f}" for owner in (SAMPLER, OURS, TUNE, RAY))
    print(
        f"{figures['sampler']:7}{figures['gpus']:5}{figures['finished']:9}{figures['minutes']:8.0f}"
        f"{sum(a_trial.values()):8.1f} ({parts}){sum(a_report.values()):8.2f}"
        f"{figures['share_of_a_core']['all']:8.1%}{figures['peak_memory_mib']:6}"
        f"{figures['idle_share']:8.2%} = {figures['idle_starting']:.2%} starting"
        f" + {figures['idle_waiting_for_driver']:.2%} waiting"
        f"{'' if figures['idle_is_under_2_percent'] else '   OVER 2 %'}",
        flush=True,
    )


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description="Costs of a sweep's driver by size.")
    parser.add_argument("--sampler", choices=SAMPLERS, action="append", help="default: both")
    parser.add_argument("--reused", type=float, default=Timings.reused, help="seconds; see Timings")
    parser.add_argument("--to", type=Path, help="where to write the JSON")
    options = parser.parse_args()
    timings = Timings(reused=options.reused)
    print(
        "sampler GPUs finished minutes ms a trial (sampler/ours/Tune/Ray) report  core  MiB  idle"
    )
    results = []
    # A process for each, one after another: so each has its own peak of memory.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for point in points(options.sampler or SAMPLERS):
            results.append(pool.submit(simulate, point, timings).result())
            show(results[-1])
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}",
        "versions": {name: version(name) for name in ("ray", "optuna")},
        "timings_s": asdict(timings),
        "sizes": results,
    }
    if options.to:
        options.to.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
