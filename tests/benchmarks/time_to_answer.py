"""Time to the answer: `python tests/benchmarks/time_to_answer.py`, with nothing else running.

How many steps, and how many seconds, until a search has found 95 % of the hypervolume that the
whole grid of trained models holds? Compared are the quickstart written with stock libraries
(`stock.py`), this project without strengths, and as the bundled sweep has it.

What is found comes from the table of `grid.py`, replayed with real searches, ten seeds each. What
it costs comes from real sweeps of 16 trials, run first, one system after the other, each two trials
at a time: seconds of a training step by method, of an evaluation, and of all else by trial. The
seconds of a search are those of its trials over two cores; the base's evaluation and the start of
Ray are left out for all.

Prints a table, and writes it with every seed's value to time_to_answer.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path[:1] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.grid import REPORT_EVERY, Point  # noqa: E402
from benchmarks.replay import ENOUGH, Run, Search, Table, Work, run  # noqa: E402
from benchmarks.search_economy import RayOptuna, ThisProject, table_of_process  # noqa: E402
from benchmarks.stock import REPORTS  # noqa: E402
from benchmarks.virtual_time import interval  # noqa: E402

from trainables import metric_keys  # noqa: E402
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC  # noqa: E402
from trainables.records.ledger import Ledger  # noqa: E402
from trainables.records.schema import Measurement, TrialRecord, TrialStatus  # noqa: E402

PROJECT = Path(__file__).resolve().parents[2]
TRIALS, CORES = 16, 2
SHARE_OF_GRID = 0.5  # a search ends when it has spent so much of the grid's steps
FIRST_SEED = 200  # seeds below were looked at when the project's defaults were chosen
HALF, _ = REPORTS
CARRIED = 3  # trials of a recipe


class ToldOfOneStrength(ThisProject):
    """The search learns from what training left alone."""

    def ended(
        self, number: int, status: TrialStatus, last: Measurement, strengths: Sequence[Measurement]
    ) -> None:
        super().ended(number, status, last, ())


class CarriedRates(ThisProject):
    """The first full trainings have a tenth of the best LoRA's rate, LoRA's ten times full's.

    Best is what learned most, then what forgot least.
    """

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed)
        self._begun = Counter[str]()
        self._best: dict[str, tuple[float, float, float]] = {}

    def suggest(self, number: int) -> Point | None:
        point = super().suggest(number)
        assert point is not None
        self._begun[point.method] += 1
        other = {"lora": "full", "full": "lora"}[point.method]
        if other not in self._best or self._begun[point.method] > CARRIED:
            return point
        span = dict(self._config.search.choices(point.method))["learning_rate"]
        carried = self._best[other][-1] * (0.1 if point.method == "full" else 10)
        rate = min(max(carried, span.low), span.high)
        record = self._records[number]
        params = {**record.params, f"{point.method}/learning_rate": rate}
        config = record.config.model_copy(update={"learning_rate": rate})
        self._records[number] = record.model_copy(update={"params": params, "config": config})
        return replace(point, learning_rate=rate)

    def ended(
        self, number: int, status: TrialStatus, last: Measurement, strengths: Sequence[Measurement]
    ) -> None:
        config = self._records[number].config
        super().ended(number, status, last, strengths)
        if status is TrialStatus.COMPLETE:
            gain, loss = last.metrics[IN_DOMAIN_ACC], last.metrics[FORGETTING_MEAN]
            found = (gain, -loss, config.learning_rate)
            recipe = config.recipe
            self._best[recipe] = max(found, self._best.get(recipe, found))


@dataclass(frozen=True)
class System:
    """What is compared.

    Attributes:
        make: its search.
        costs: the real sweep that its costs are of.
        report_every: steps between evaluations.
        with_strengths: whether other strengths are evaluated at the end.
    """

    make: Callable[[Table, int], Search]
    costs: str
    report_every: int = HALF
    with_strengths: bool = False


SYSTEMS = {
    "stock": System(RayOptuna, "stock"),
    f"stock, ASHA from step {HALF}": System(partial(RayOptuna, asha=HALF), "stock"),
    f"stock, ASHA from step {REPORT_EVERY}": System(
        partial(RayOptuna, asha=REPORT_EVERY), "stock", REPORT_EVERY
    ),
    "without strengths": System(ThisProject, "without strengths"),
    "strengths the search is not told of": System(
        ToldOfOneStrength, "this project", with_strengths=True
    ),
    "rates carried between recipes": System(CarriedRates, "this project", with_strengths=True),
    "this project": System(ThisProject, "this project", with_strengths=True),
}
OURS = "this project"


@dataclass(frozen=True)
class Costs:
    """Seconds on one core.

    Attributes:
        step: of a training step, by method.
        evaluation: of one evaluation.
        rest: of a trial, besides.
        wall: of the whole real sweep, on all cores.
    """

    step: dict[str, float]
    evaluation: float
    rest: float
    wall: float

    @classmethod
    def of(cls, trials: Sequence[Mapping[str, Any]], evaluations: int, wall: float) -> Costs:
        """From trials with their `method`, `step`, `train_s` and `eval_s`."""
        step = {
            method: sum(t["train_s"] for t in own) / sum(t["step"] for t in own)
            for method in ("lora", "full")
            if (own := [t for t in trials if t["method"] == method])
        }
        inside = sum(t["train_s"] + t["eval_s"] for t in trials)
        evaluation = sum(t["eval_s"] for t in trials) / evaluations
        return cls(step, evaluation, (CORES * wall - inside) / len(trials), wall)

    def seconds(self, work: Work) -> float:
        """Wall-clock seconds of so much work on all cores."""
        training = sum(steps * self.step[method] for method, steps in work.steps.items())
        return (training + work.evaluations * self.evaluation + work.trials * self.rest) / CORES


def stock_costs(folder: Path) -> Costs:
    """Of the sweep with stock libraries."""
    out = folder / "stock.json"
    _run("tests/benchmarks/stock.py", "--out", out, "--trials", TRIALS)
    found = json.loads(out.read_text())
    trials = [{**trial, "method": trial["config"]["method"]} for trial in found["trials"]]
    evaluations = sum(trial["step"] // HALF for trial in trials)
    return Costs.of(trials, evaluations, found["ended"] - found["began"])


def our_costs(folder: Path, *settings: str) -> Costs:
    """Of the bundled sweep."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    _run("tune/run.py", "quickstart", "--num-trials", TRIALS, "--output-dir", folder, *overrides)
    records = Ledger(folder / "quickstart").trials()
    assert all(record.status is TrialStatus.COMPLETE for record in records)
    trials = [
        {
            "method": record.config.method.name,
            "step": record.last.step,
            "train_s": record.metrics[metric_keys.TRAIN_SECONDS],
            "eval_s": max(_evaluation_seconds(record)),
        }
        for record in records
        if record.last
    ]
    evaluations = sum(2 + len(record.points) for record in records)
    ended = [record.ended for record in records if record.ended]
    return Costs.of(trials, evaluations, max(ended) - min(record.started for record in records))


def _evaluation_seconds(record: TrialRecord) -> list[float]:
    views = (record, *record.curve)
    return [view.metrics[metric_keys.EVAL_SECONDS] for view in views]


def _run(*command: object) -> None:
    print("$", *command, flush=True)
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "WANDB_MODE": "offline"}
    called = [sys.executable, *map(str, command)]
    subprocess.run(called, cwd=PROJECT, env=environment, check=True, stdout=subprocess.DEVNULL)


def one(job: tuple[str, int]) -> Run:
    name, seed = job
    system = SYSTEMS[name]
    return run(
        table_of_process(),
        system.make,
        seed,
        SHARE_OF_GRID,
        workers=CORES,
        report_every=system.report_every,
        with_strengths=system.with_strengths,
    )


def summary(runs: Sequence[Run], costs: Costs) -> dict[str, Any]:
    """The figures of one system over its seeds; steps and seconds are None where not enough."""
    works = [run.enough_work for run in runs]
    return {
        "steps": [run.enough_at if math.isfinite(run.enough_at) else None for run in runs],
        "seconds": [costs.seconds(work) if work else None for work in works],
        "hypervolume": [run.by_trials[TRIALS - 1] for run in runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="default: 10")
    parser.add_argument("--costs", type=Path, help="an earlier time_to_answer.json, for its costs")
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    costs = _known_costs(options.costs) if options.costs else _measured_costs()
    jobs = [(name, seed) for name in SYSTEMS for seed in seeds]
    with ProcessPoolExecutor(CORES) as pool:
        runs = dict(zip(jobs, pool.map(one, jobs), strict=True))
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: version(name) for name in ("ray", "optuna", "trl", "peft", "lm_eval")},
        "seeds": [seeds.start, seeds.stop - 1],
        "costs": {name: asdict(each) for name, each in costs.items()},
        "random draws": {n: random_draws(table_of_process(), n) for n in (1, TRIALS)},
        "systems": {
            name: summary([runs[name, seed] for seed in seeds], costs[system.costs])
            for name, system in SYSTEMS.items()
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    show(report, table_of_process())


def random_draws(table: Table, count: int, draws: int = 300) -> dict[str, float]:
    """Share of the grid's hypervolume that `count` of its points hold, mean over random draws."""
    generator = np.random.default_rng(0)
    found: dict[str, list[float]] = {"strength 1": [], "all strengths": []}
    for _ in range(draws):
        chosen = generator.choice(len(table.points), count, replace=False)
        for name, strengths in (("strength 1", (1.0,)), ("all strengths", table.strengths)):
            models = [(table.points[each], at) for each in chosen for at in strengths]
            found[name].append(table.found(models) / table.hypervolume)
    return {name: fmean(shares) for name, shares in found.items()}


def _measured_costs() -> dict[str, Costs]:
    with TemporaryDirectory() as scratch:
        return {
            "stock": stock_costs(Path(scratch)),
            "without strengths": our_costs(Path(scratch, "without"), "rewind=null"),
            "this project": our_costs(Path(scratch, "with")),
            "in slots": our_costs(Path(scratch, "slots"), "resources.lora={slots: auto}"),
        }


def _known_costs(file: Path) -> dict[str, Costs]:
    return {name: Costs(**each) for name, each in json.loads(file.read_text())["costs"].items()}


def show(report: dict[str, Any], table: Table) -> None:
    """Ratios are of means; where a seed did not find enough, of what it had spent at the end."""
    first, last = report["seeds"]
    print(f"\nuntil {ENOUGH:.0%} of the grid, seeds {first} to {last}, 95 % bootstrap intervals")
    print("costs in seconds:", json.dumps(report["costs"]))
    print("found by random draws:", json.dumps(report["random draws"]))
    ours = report["systems"][OURS]
    for name, figures in report["systems"].items():
        reached = sum(steps is not None for steps in figures["steps"])
        steps = _filled(figures["steps"], SHARE_OF_GRID * table.steps)
        times = _ratio(steps, _filled(ours["steps"], SHARE_OF_GRID * table.steps))
        seconds = [each for each in figures["seconds"] if each is not None]
        found = _ratio(ours["hypervolume"], figures["hypervolume"])
        print(
            f"{name:36} reached by {reached} of {len(steps)}; steps {_mean(steps)}, {times} times "
            f"ours; seconds of those {_mean(seconds)}; after {TRIALS} trials "
            f"{_mean(figures['hypervolume'])}, ours {found} times"
        )


def _filled(values: Sequence[float | None], limit: float) -> list[float]:
    return [limit if value is None else value for value in values]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = interval(np.array(values), np.random.default_rng(0))
    return f"{fmean(values):.4g} [{low:.4g}, {high:.4g}]"


def _ratio(values: Sequence[float], of: Sequence[float]) -> str:
    """The ratio of means of values paired by seed."""
    pairs = np.array([values, of])
    drawn = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    means = pairs[:, drawn].mean(axis=2)
    low, high = np.percentile(means[0] / means[1], [2.5, 97.5])
    return f"{fmean(values) / fmean(of):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
