"""What a sweep costs its driver, from 8 to 512 GPUs and as its finished trials grow.

    python tests/benchmarks/scale.py [--sampler tpe] [--to scale.json]

The driver's own work is real: the search, the early stopping, the ledger with its fsyncs, and the
console's table are called as Tune calls them. Time is not: the trials of a discrete simulation last
20 minutes on average and report ten times, so that an hour of 512 GPUs takes seconds. Tune's own
work and Ray's are not in these figures.

Prints, for each size, processor milliseconds per trial and per report, the processor share that
makes of one core at that many GPUs, and the memory of the process. What grows with the finished
trials is Optuna's TPE, which weighs all of them for each suggestion; `--sampler random` shows the
rest.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import platform
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from trainables.config import TrialConfig
from trainables.ledger import Ledger
from trainables.records import (
    BaseRecord,
    Measurement,
    Outcome,
    Provenance,
    SweepRecord,
    TrialRecord,
    TrialStatus,
)
from tune.console import ConsoleListener
from tune.early_stopping import SuccessiveHalving
from tune.listeners import SweepListener
from tune.placement import Placement, Room
from tune.recorder import Recorder
from tune.search_space import Params
from tune.searcher import OptunaSearcher
from tune.sweep import make_trial
from tune.sweep_config import SweepConfig
from tune.sweep_file import load_sweep

MINUTES, REPORTS, STEPS = 20.0, 10, 1000
TIMED = 20  # trials, after a first start of all GPUs
SIZES = [(8, 100), (64, 100), (512, 100), (64, 1000), (64, 3000)]


class Clock:
    """Processor seconds of the driver's work, by kind."""

    def __init__(self) -> None:
        self.seconds = {"trial": 0.0, "report": 0.0}
        self.count = {"trial": 0, "report": 0}

    def time(self, kind: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        answer = call()
        self.seconds[kind] += time.process_time() - began
        return answer


class Simulation:
    """One sweep, in time of its own."""

    def __init__(self, config: SweepConfig, root: Path, gpus: int, finished: int) -> None:
        self._chance = random.Random(0)
        self._config = config
        self._ledger = Ledger(root)
        self._gpus = gpus
        self._now, self._events = 0.0, []
        cluster = {"CPU": 8.0 * gpus, "GPU": float(gpus)}

        def make(number: int, params: Params, attempt: int, seed: int) -> TrialConfig:
            return make_trial(config, "s", self._ledger, cluster, number, params, attempt, seed)

        history = [self._ended(make, number) for number in range(finished)]
        self.searcher = OptunaSearcher(config, make, history)
        self.searcher.keep_within(Room(cluster, Placement({}, has_slots=False).holds))
        self._halving = SuccessiveHalving(config.early_stopping, config.constraints)
        console = ConsoleListener(config, Console(file=io.StringIO()))
        self._listeners: list[SweepListener] = [Recorder(self._ledger), self.searcher, console]
        for listener in self._listeners:
            listener.sweep_started(SWEEP, BASE, history)

    def run(self, trials: int, clock: Clock) -> None:
        """Start trials wherever a GPU is free until so many have ended."""
        while clock.count["trial"] < trials:
            while suggestion := clock.time("trial", lambda: self.searcher.suggest("")):
                clock.time("trial", lambda found=suggestion: self._start(found))
            self._now, _, record, step = heapq.heappop(self._events)
            measurement = self._measurement(record, step)
            record = record.after(measurement)
            outcome = clock.time("report", lambda r=record, m=measurement: self._report(r, m))
            clock.count["report"] += 1
            if outcome is None and step < STEPS:
                self._schedule(record, step + STEPS // REPORTS)
                continue
            ended = record.ended_as(outcome or Outcome(status=TrialStatus.COMPLETE))
            clock.time("trial", lambda r=ended: self._tell("trial_ended", r))
            clock.count["trial"] += 1

    def _start(self, suggestion: dict[str, Any]) -> None:
        config = TrialConfig.model_validate(suggestion["trial"])
        record = TrialRecord(config=config, params=suggestion["params"], started=time.time())
        self._tell("trial_started", record)
        self._schedule(record, STEPS // REPORTS)

    def _report(self, record: TrialRecord, measurement: Measurement) -> Outcome | None:
        self._tell("measured", record, measurement)
        return self._halving.decide(record.number, measurement)

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in self._listeners:
            getattr(listener, event)(*arguments)

    def _schedule(self, record: TrialRecord, step: int) -> None:
        minutes = MINUTES / REPORTS * self._chance.uniform(0.5, 1.5)
        heapq.heappush(self._events, (self._now + minutes, record.number, record, step))

    def _measurement(self, record: TrialRecord, step: int) -> Measurement:
        metrics = {key: self._chance.random() for key in METRICS}
        return Measurement(step=step, total_steps=STEPS, metrics=metrics, time=time.time())

    def _ended(self, make: Any, number: int) -> TrialRecord:
        rank = self._chance.choice([1, 2, 4, 8, 16, 32])
        params: Params = {
            "method": "lora",
            "lora/rank": rank,
            "lora/alpha_ratio": self._chance.choice([1, 2, 4]),
            "lora/learning_rate": 10 ** self._chance.uniform(-3.2, -2.1),
        }
        config = make(number, params, 1, 0)
        record = TrialRecord(config=config, params=params, started=1.0 + number)
        return record.after(self._measurement(record, STEPS)).ended_as(
            Outcome(status=TrialStatus.COMPLETE)
        )


METRICS = ("train/loss", "in_domain/acc_mean", "forgetting/mean", "ood/acc_mean")
SETTINGS = (
    "budget.trials=1000000",
    "resources.lora.gpus_per_worker=1",
    "resources.full.gpus_per_worker=1",
    "early_stopping={metrics: {in_domain/acc_mean: 1}, loss_limit: null}",
)
BASE = BaseRecord(
    key="",
    scores={},
    metrics=dict.fromkeys(METRICS, 0.5),
    general_nll=None,
    parameters=1,
    train_samples=1,
    skipped_samples=0,
    seconds=1,
)
SWEEP = SweepRecord(
    sweep_id="s",
    config={"name": "s"},
    provenance=Provenance(created=1, command="", git_commit=None, python="", versions={}),
)


def figures(sampler: str, gpus: int, finished: int) -> dict[str, float]:
    """Of one size."""
    config = load_sweep("quickstart", [*SETTINGS, f"sampler={sampler}"])
    with TemporaryDirectory() as folder:
        simulation = Simulation(config, Path(folder), gpus, finished)
        simulation.run(1, Clock())  # every GPU has its first trial
        clock = Clock()
        simulation.run(TIMED, clock)
    a_trial = clock.seconds["trial"] / clock.count["trial"]
    a_report = clock.seconds["report"] / clock.count["report"]
    # Early stopping shortens trials; so many end and report in a second of the simulated cluster.
    minutes = MINUTES / REPORTS * clock.count["report"] / clock.count["trial"]
    share = gpus / (minutes * 60) * a_trial + gpus / (MINUTES / REPORTS * 60) * a_report
    return {
        "gpus": gpus,
        "finished_trials": finished,
        "milliseconds_a_trial": round(a_trial * 1e3, 1),
        "milliseconds_a_report": round(a_report * 1e3, 2),
        "share_of_a_core": round(share, 4),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--to", type=Path, help="where to write the JSON")
    options = parser.parse_args()
    sizes = [figures(options.sampler, gpus, finished) for gpus, finished in SIZES]
    machine = {"name": platform.processor() or platform.machine(), "python": sys.version.split()[0]}
    text = json.dumps({"machine": machine, "sampler": options.sampler, "sizes": sizes}, indent=2)
    print(text)
    if options.to:
        options.to.write_text(text + "\n")


if __name__ == "__main__":
    main()
