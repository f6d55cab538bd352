"""Seconds until a full fine-tuning trial has done its first step: cold, and on warm workers.

    PYTHONPATH=. python tests/benchmarks/warm_workers.py --out warm_workers.json

One sweep for each number of workers, its trials one after another. The first counts from the
sweep's start, base evaluation left out, the others from the end of the trial before; so both hold
all that Tune, processes, data, model and DeepSpeed take. Asked for: under 3 s when warm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from trainables.records.schema import (
    BaseRecord,
    Measurement,
    SweepRecord,
    TrialRecord,
    TrialStatus,
)
from tune.cluster.ray_cluster import ray_cluster
from tune.config.sweep_file import load_sweep
from tune.listeners import SweepListener
from tune.sweep import Sweep


class Starts(SweepListener):
    """Seconds from the end of whatever came before to each trial's first step."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def sweep_started(self, sweep: SweepRecord, base: BaseRecord, history: Any) -> None:
        """The first trial's time begins."""
        self._before = time.time()

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        """The first one is of the first step."""
        self.seconds.setdefault(record.number, measurement.time - self._before)

    def trial_ended(self, record: TrialRecord) -> None:
        """The next one's time begins."""
        self._before = time.time()


def starts(workers: int, trials: int, folder: Path) -> list[float]:
    """Of each trial, in their order."""
    rates = [1e-5 * (index + 1) for index in range(trials)]
    config = load_sweep(
        "quickstart",
        [
            f"search={{full: {{learning_rate: {rates}}}}}",
            "sampler=grid",
            f"budget.trials={trials}",
            "early_stopping=null",
            f"resources={{max_concurrent: 1, full: {{workers: {workers}}}}}",
            "train={steps: 10, batch_size: 8, micro_batch_size: 4, report_every: 10, log_every: 1}",
            "eval.limit=20",
        ],
    )
    listener = Starts()
    outcome = Sweep(config, folder / str(workers), folder / "base").run([listener])
    assert [record.status for record in outcome.records] == [TrialStatus.COMPLETE] * trials
    return [listener.seconds[number] for number in sorted(listener.seconds)]


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("warm_workers.json"))
    parser.add_argument("--trials", type=int, default=5)
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": platform.node(), "cpus": os.cpu_count()}
    with ray_cluster(None), tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            load = os.getloadavg()[0]
            cold, *warm = starts(workers, options.trials, Path(folder))
            figures[f"{workers} workers"] = {
                "cold_s": cold,
                "warm_s": warm,
                "ratio": cold / median(warm),
                "load": [load, os.getloadavg()[0]],
            }
    options.out.write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
