"""Every point of the quickstart sweep on a grid: `python tests/benchmarks/grid.py`.

Trains each point of method x rank x alpha ratio x learning rate with three seeds and keeps what it
measured on the way, and its strengths at the end, in grid.jsonl beside this file, one training a
line, which `search_economy.py` and `time_to_answer.py` replay. The same trainings in the same order
give the same file; where it was interrupted the same command goes on.

A training is the sweep's: same model, data, steps, schedule, batches. It is evaluated on the
sweep's own tasks, on the first ITEMS items of each, six times instead of twice, and on nothing
that is no objective (no KL, no general text). LoRA trains in slots; full fine-tuning under
DeepSpeed in this process, one by one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:1] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from trainables.config import TrialConfig  # noqa: E402
from trainables.errors import Diverged  # noqa: E402
from trainables.methods.full import Full  # noqa: E402
from trainables.methods.lora import Lora  # noqa: E402
from trainables.metric_keys import (  # noqa: E402
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    OOD_ACC,
    TRAIN_LOSS,
)
from trainables.records.schema import Measurement, TrialStatus  # noqa: E402
from trainables.training.reporter import ListReporter  # noqa: E402
from tune.config.choices import LogUniform  # noqa: E402
from tune.config.sweep_config import SweepConfig  # noqa: E402
from tune.config.sweep_file import load_sweep  # noqa: E402

TABLE = Path(__file__).with_name("grid.jsonl")
LORA_RATES, FULL_RATES = 10, 21  # learning rates, evenly over the sweep's range on a log scale
SEEDS = 3
ITEMS = 32  # of each task that are asked at a report
REPORT_EVERY = 20
SLOTS = 16
OBJECTIVES = (IN_DOMAIN_ACC, FORGETTING_MEAN, OOD_ACC)
METRICS = (TRAIN_LOSS, *OBJECTIVES)
DIGITS = 4


@dataclass(frozen=True)
class Point:
    """A point of the grid; full fine-tuning has neither rank nor ratio."""

    method: str
    rank: int | None
    alpha_ratio: float | None
    learning_rate: float


@dataclass(frozen=True)
class Training:
    """One training of a point: its ending, and `METRICS` at each step where it measured them.

    The first measurement, at step 1, is of the loss alone. `strengths` has the objectives of the
    trained model at the sweep's other strengths; none where it diverged.
    """

    point: Point
    seed: int
    status: TrialStatus
    curve: dict[int, dict[str, float]]
    strengths: dict[float, dict[str, float]]


@dataclass(frozen=True)
class Grid:
    """The table: the untouched base's metrics, and every training."""

    base: dict[str, float]
    trainings: tuple[Training, ...]

    @classmethod
    def read(cls, file: Path = TABLE) -> Grid:
        """Read it back; a last line that was torn is left out."""
        lines = file.read_text().splitlines(keepends=True)
        header, *rest = [json.loads(line) for line in lines if line.endswith("\n")]
        return cls(header["base"], tuple(_from_line(line) for line in rest))


def sweep() -> SweepConfig:
    """The quickstart sweep, with the evaluation of the grid."""
    return load_sweep(
        "quickstart",
        [
            f"eval.limit={ITEMS}",
            "eval.general_text=null",
            "eval.kl_prompts=0",
            f"train.report_every={REPORT_EVERY}",
            f"train.log_every={REPORT_EVERY}",
            "train.save_weights=false",
        ],
    )


def points(config: SweepConfig) -> list[Point]:
    """The whole grid."""
    lora, full = (dict(config.search.choices(recipe)) for recipe in ("lora", "full"))
    adapters = product(lora["rank"], lora["alpha_ratio"], _rates(lora["learning_rate"], LORA_RATES))
    return [
        *(Point("lora", rank, ratio, rate) for rank, ratio, rate in adapters),
        *(Point("full", None, None, rate) for rate in _rates(full["learning_rate"], FULL_RATES)),
    ]


def _rates(span: Any, count: int) -> list[float]:
    assert isinstance(span, LogUniform)
    return [float(f"{rate:.6g}") for rate in np.geomspace(span.low, span.high, count)]


def trial(
    config: SweepConfig, point: Point, seed: int, base_dir: Path, folder: str, number: int = 0
) -> TrialConfig:
    """The trial of a point."""
    is_lora = point.method == "lora"
    rank = point.rank or 0
    adapter = Lora(rank=rank, alpha=(point.alpha_ratio or 0) * rank) if is_lora else Full()
    return TrialConfig(
        trial_id=f"{asdict(point)} {seed}",
        number=number,
        seed=seed,
        data_seed=config.seed,
        recipe=point.method,
        method=adapter,
        learning_rate=point.learning_rate,
        deepspeed=None if is_lora else config.deepspeed,
        model=config.model,
        data=config.data,
        eval=config.eval,
        train=config.train,
        output_dir=folder,
        base_dir=str(base_dir),
        strengths=config.strengths(adapter),
    )


Job = tuple[Point, int]


def train_in_slots(config: SweepConfig, jobs: Sequence[Job], base_dir: Path) -> Iterator[Training]:
    """LoRA trainings, some at a time, as they end."""
    from trainables.packing.engine import SlotEngine

    if not jobs:
        return
    waiting = list(reversed(jobs))
    busy: dict[Any, tuple[Job, ListReporter, tempfile.TemporaryDirectory[str]]] = {}
    first = trial(config, *jobs[0], base_dir, "")
    engine = SlotEngine(first)
    while busy or waiting:
        while waiting and len(busy) < SLOTS:
            job, reporter, folder = waiting.pop(), ListReporter(), tempfile.TemporaryDirectory()
            slot = engine.join(trial(config, *job, base_dir, folder.name), reporter)
            busy[slot] = (job, reporter, folder)
        for ended in engine.step():
            job, reporter, folder = busy.pop(ended.slot)
            folder.cleanup()
            yield _training(job, reporter.measurements, ended.error)
    engine.close()


def train_in_full(config: SweepConfig, jobs: Sequence[Job], base_dir: Path) -> Iterator[Training]:
    """Full fine-tunings, one by one."""
    from trainables.training.full_sft import train_full_sft

    for job in jobs:
        reporter, error = ListReporter(), None
        with tempfile.TemporaryDirectory() as folder:
            try:
                train_full_sft(trial(config, *job, base_dir, folder), reporter)
            except Diverged as diverged:
                error = diverged
        yield _training(job, reporter.measurements, error)


def _training(job: Job, measurements: Sequence[Measurement], error: Exception | None) -> Training:
    if error is not None and not isinstance(error, Diverged):
        raise error
    status = TrialStatus.COMPLETE if error is None else TrialStatus.DIVERGED
    curve = {m.step: _rounded(m, METRICS) for m in measurements if m.strength == 1}
    scaled = {m.strength: _rounded(m, OBJECTIVES) for m in measurements if m.strength != 1}
    return Training(*job, status, curve, scaled)


def _rounded(measurement: Measurement, metrics: Sequence[str]) -> dict[str, float]:
    found = measurement.metrics
    return {metric: round(found[metric], DIGITS) for metric in metrics if metric in found}


def _to_line(training: Training) -> str:
    curve = [[step, *metrics.values()] for step, metrics in training.curve.items()]
    strengths = [[strength, *metrics.values()] for strength, metrics in training.strengths.items()]
    row = [*asdict(training.point).values(), training.seed, training.status, curve, strengths]
    return json.dumps(row, separators=(",", ":")) + "\n"


def _from_line(row: list[Any]) -> Training:
    *point, seed, status, curve, strengths = row
    metrics = {step: dict(zip(METRICS, values, strict=False)) for step, *values in curve}
    scaled = {at: dict(zip(OBJECTIVES, values, strict=True)) for at, *values in strengths}
    return Training(Point(*point), seed, TrialStatus(status), metrics, scaled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TABLE, help="default: grid.jsonl beside this")
    file = parser.parse_args().out
    import torch
    from evaluated import evaluated_base

    from trainables.evaluation.base_scores import Base

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    config = sweep()
    with tempfile.TemporaryDirectory() as cache:
        base_dir = evaluated_base(config, Path(cache))
        if not file.exists():
            metrics = Base.load(base_dir).record.metrics
            base = {metric: round(metrics[metric], DIGITS) for metric in OBJECTIVES}
            file.write_text(json.dumps({"metrics": METRICS, "items": ITEMS, "base": base}) + "\n")
        _train_missing(file, config, base_dir)
    _sort(file, config)


def _train_missing(file: Path, config: SweepConfig, base_dir: Path) -> None:
    known = Grid.read(file).trainings
    done = {(training.point, training.seed) for training in known}
    everything = _jobs(config)
    missing = [job for job in everything if job not in done]
    by_method = {m: [job for job in missing if job[0].method == m] for m in ("lora", "full")}
    started, count = time.monotonic(), len(done)
    for train, jobs in ((train_in_slots, by_method["lora"]), (train_in_full, by_method["full"])):
        for training in train(config, jobs, base_dir):
            with file.open("a") as table:
                table.write(_to_line(training))
            count += 1
            print(f"{count} of {len(everything)}, {time.monotonic() - started:.0f} s", flush=True)


def _jobs(config: SweepConfig) -> list[Job]:
    seeds = range(config.seed, config.seed + SEEDS)
    return [(point, seed) for seed in seeds for point in points(config)]


def _sort(file: Path, config: SweepConfig) -> None:
    """Put the lines in the order of the grid, whatever order they ended in."""
    header = file.read_text().splitlines(keepends=True)[0]
    trained = {(t.point, t.seed): t for t in Grid.read(file).trainings}
    file.write_text(header + "".join(_to_line(trained[job]) for job in _jobs(config)))


if __name__ == "__main__":
    main()
