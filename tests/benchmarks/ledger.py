"""Speed of the ledger: reading a large sweep back, and recording a report.

    python tests/benchmarks/ledger.py [--trials 10000] [--to FOLDER]

Prints JSON: seconds to read, and milliseconds a report costs the driver (all that the `Recorder`
does, fsync included) as the sweep grows from ten trials to the full number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainables.config import LoraConfig, TrialConfig
from trainables.metric_keys import METRICS
from trainables.records.ledger import Ledger
from trainables.records.metrics_file import to_line
from trainables.records.schema import (
    Measurement,
    Provenance,
    SweepRecord,
    TrialRecord,
    TrialStatus,
)
from tune.config.sweep_file import load_sweep
from tune.folder.recorder import Recorder
from tune.folder.sweep_folder import check_sweep_folder

STEPS, LOG_EVERY, REPORT_EVERY = 1000, 50, 250  # the default shares of a training
TASKS = 8
REPORTS = 200
SWEEP = SweepRecord(
    sweep_id="quickstart-0123abcd",
    config={"name": "quickstart"},
    provenance=Provenance(created=1, command="", git_commit=None, python="", versions={}),
)


def measurement(step: int) -> Measurement:
    """As many metrics as a trial logs: its curve always, every task's scores when it reports."""
    keys = [key for key in METRICS if key.startswith(("train/", "time/", "perf/", "memory/"))]
    if step % REPORT_EVERY == 0:
        keys = list(METRICS)
        for task in range(TASKS):
            keys += [f"retention/task_{task}/{part}" for part in ("acc", "acc_stderr")]
            keys += [f"forgetting/task_{task}", f"flips/task_{task}/forgotten"]
    metrics = {key: 1 / (position + step / 7) for position, key in enumerate(keys, start=1)}
    return Measurement(step=step, total_steps=STEPS, metrics=metrics, time=1.7e9 + step / 3)


def record(number: int, status: TrialStatus = TrialStatus.COMPLETE) -> TrialRecord:
    sweep = load_sweep("quickstart", [])
    last = measurement(STEPS)
    config = TrialConfig(
        trial_id=f"quickstart-0123abcd-{number:04d}",
        number=number,
        seed=0,
        data_seed=0,
        method="lora",
        learning_rate=3e-4,
        lora=LoraConfig(rank=16, alpha=32),
        model=sweep.model,
        data=sweep.data,
        eval=sweep.eval,
        train=sweep.train,
        output_dir=f"/sweeps/quickstart/trials/{number:04d}/attempt_1",
        base_dir="/sweeps/quickstart/base",
    )
    return TrialRecord(
        config=config,
        params={"method": "lora", "lora.rank": 16, "lora.learning_rate": 3e-4},
        status=status,
        started=1.7e9,
        ended=1.7e9 + 60,
        last=last,
        best=last.metrics,
        weights_dir=f"{config.output_dir}/weights",
    )


def fill(ledger: Ledger, numbers: range) -> None:
    """Write finished trials, without the fsyncs that a sweep would have spread over days."""
    template = record(0).model_dump_json(indent=2)
    lines = b"".join(to_line(measurement(step)) for step in (1, *range(50, STEPS + 1, LOG_EVERY)))
    for number in numbers:
        file = ledger.folder.trial_json(number)
        file.parent.mkdir(parents=True)
        file.write_text(template.replace('"number": 0', f'"number": {number}'))
        ledger.folder.metrics(number).write_bytes(lines)


def report_milliseconds(ledger: Ledger, number: int) -> dict[str, float]:
    """Time of single reports of a new trial."""
    recorder = Recorder(ledger)
    running = record(number, TrialStatus.RUNNING)
    recorder.trial_started(running)
    times = []
    for step in range(1, REPORTS + 1):
        new = measurement(step * REPORT_EVERY)
        started = time.perf_counter()
        recorder.measured(running, new)
        times.append((time.perf_counter() - started) * 1e3)
    return {
        "median": round(statistics.median(times), 3),
        "p95": round(statistics.quantiles(times, n=20)[-1], 3),
    }


def history(root: Path) -> None:
    """What a sweep reads to go on."""
    ledger = Ledger(root)
    ledger.trials()
    ledger.histories()


def seconds(call: Callable[[], object]) -> dict[str, float]:
    """Of the wall clock, and of the processor, which a busy machine does not change as much."""
    started, used = time.perf_counter(), time.process_time()
    call()
    return {
        "wall": round(time.perf_counter() - started, 2),
        "cpu": round(time.process_time() - used, 2),
    }


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--to", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.to) as folder:
        root = Path(folder)
        ledger = Ledger(root)
        ledger.write_sweep(SWEEP)
        reports, filled = {}, 0
        for size in [s for s in (10, 100, 1000, 10_000) if s < options.trials] + [options.trials]:
            fill(ledger, range(filled, size))
            filled = size
            reports[size] = report_milliseconds(Ledger(root), 10**6 + size)
        files = [ledger.folder.metrics(0), ledger.folder.trial_json(0)]
        reading = Ledger(root)
        result = {
            "trials": options.trials,
            "lines_a_trial": len(reading.measurements(0)),
            "bytes_a_trial": sum(file.stat().st_size for file in files),
            "read_seconds": {
                "trials": seconds(reading.trials),
                "measurements": seconds(reading.histories),
                "check_of_everything": seconds(reading.check),
                "start_of_a_sweep": seconds(lambda: (check_sweep_folder(root), history(root))),
            },
            "report_milliseconds_by_trials": reports,
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
