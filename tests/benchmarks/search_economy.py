"""Search economy: `python tests/benchmarks/search_economy.py`.

How many training steps does a search need to find what the whole grid holds? The searches are
real, the trainings are replayed from the table of `grid.py` (see `replay.py`).

Compared are the grid itself in random order, random search, Ray's OptunaSearch with its own
sampler (alone, and with Ray's ASHA on in-domain accuracy), and this project's searcher: as a sweep
has it by default, with `early_stopping: {}`, and with early stopping by a weighted sum.

Prints a table, and writes it with every seed's curve to search_economy.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ray.tune.utils import flatten_dict

sys.path[:1] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]

from benchmarks.early_stopping import no_stopping, ray_asha  # noqa: E402
from benchmarks.grid import REPORT_EVERY, Grid, Point, trial  # noqa: E402
from benchmarks.replay import ENOUGH, WORKERS, Run, Search, Table, run  # noqa: E402
from benchmarks.virtual_time import interval  # noqa: E402

from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC  # noqa: E402
from trainables.records.schema import Measurement, TrialRecord, TrialStatus  # noqa: E402
from tune.config.sweep_config import EarlyStoppingConfig, SweepConfig  # noqa: E402
from tune.search.early_stopping import SuccessiveHalving  # noqa: E402
from tune.search.searcher import OptunaSearcher  # noqa: E402
from tune.search.space import Params, learning_rate, point_method, suggest  # noqa: E402

SHARE_OF_GRID = 0.5  # of the grid's steps; a search ends when it has spent these
FIRST_SEED = 100  # seeds below were looked at when the project's defaults were chosen
CURVE_POINTS = 40  # of the curve that is written, over all steps of the grid
SHOWN = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # budgets that are printed, as shares of the grid's steps


class WholeGrid:
    """Every point once, in random order."""

    def __init__(self, table: Table, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(table.points))
        self._order = [table.points[index] for index in order]

    def suggest(self, number: int) -> Point | None:
        return self._order[number] if number < len(self._order) else None

    def ending(self, number: int, measurement: Measurement) -> TrialStatus | None:
        return None

    def ended(
        self, number: int, status: TrialStatus, last: Measurement, strengths: Sequence[Measurement]
    ) -> None:
        pass


class ThisProject:
    """The searcher and the early stopping of a sweep with these settings, as `Sweep` joins them."""

    def __init__(self, table: Table, seed: int, **settings: Any) -> None:
        budget = table.config.budget.model_copy(update={"trials": sys.maxsize})
        update = {"seed": seed, "budget": budget, **settings}
        self._config = config = table.config.model_copy(update=update)
        self._searcher = OptunaSearcher(config, self._make_trial)
        self._rule = (
            SuccessiveHalving(config.early_stopping, config.objectives, config.constraints)
            if config.early_stopping
            else None
        )
        self._records: dict[int, TrialRecord] = {}

    def _make_trial(self, number: int, params: Params, attempt: int, seed: int) -> Any:
        point = point_of(self._config, params)
        return trial(self._config, point, seed, Path("base"), "attempt", number)

    def suggest(self, number: int) -> Point | None:
        suggestion: Any = self._searcher.suggest(str(number))
        params = suggestion["params"]
        config = self._make_trial(number, params, 1, suggestion["trial"]["seed"])
        self._records[number] = TrialRecord(config=config, params=params, started=0)
        return point_of(self._config, params)

    def ending(self, number: int, measurement: Measurement) -> TrialStatus | None:
        outcome = self._rule.decide(number, measurement, self._config.train) if self._rule else None
        return outcome.status if outcome else None

    def ended(
        self, number: int, status: TrialStatus, last: Measurement, strengths: Sequence[Measurement]
    ) -> None:
        record = self._records.pop(number).after(last)
        for point in strengths:
            record = record.after(point)
        self._searcher.trial_ended(record.model_copy(update={"status": status}))


class RayOptuna:
    """Ray's OptunaSearch over the same space, and its ASHAScheduler, as Tune would drive them.

    `asha` is the step of its first rung, at which trials report first.
    """

    def __init__(self, table: Table, seed: int, asha: int | None = None) -> None:
        from ray.tune.search.optuna import OptunaSearch

        self._config = config = table.config
        self._searcher = OptunaSearch(
            lambda asked: _define(config, asked),
            metric=[objective.metric for objective in config.objectives],
            mode=[objective.mode for objective in config.objectives],
            seed=seed,
        )
        weights = {IN_DOMAIN_ACC: 1.0}
        self._rule = ray_asha(weights, table.total_steps, asha) if asha else no_stopping

    def suggest(self, number: int) -> Point | None:
        nested = self._searcher.suggest(str(number))
        return point_of(self._config, flatten_dict(nested))

    def ending(self, number: int, measurement: Measurement) -> TrialStatus | None:
        metrics = measurement.metrics
        if IN_DOMAIN_ACC not in metrics:
            return None
        stops = self._rule(number, measurement.step, metrics, metrics[IN_DOMAIN_ACC], None)
        return TrialStatus.STOPPED_EARLY if stops else None

    def ended(
        self, number: int, status: TrialStatus, last: Measurement, strengths: Sequence[Measurement]
    ) -> None:
        is_error = status is TrialStatus.DIVERGED
        self._searcher.on_trial_complete(str(number), None if is_error else last.metrics, is_error)


def _define(config: SweepConfig, asked: Any) -> None:
    """The sweep's space in Optuna's own words."""

    def choose(name: str, distribution: Any) -> Any:
        if hasattr(distribution, "choices"):
            return asked.suggest_categorical(name, distribution.choices)
        return asked.suggest_float(name, distribution.low, distribution.high, log=True)

    suggest(config.search, choose)


def point_of(config: SweepConfig, params: Params) -> Point:
    """A point as the search suggests it, wherever it lies."""
    rate = learning_rate(config.search, params)
    method = point_method(config, params)
    if method.capacity is None:
        return Point("full", None, None, rate)
    return Point("lora", method.capacity.number, method.scale, rate)


SEARCHES: dict[str, Callable[[Table, int], Search]] = {
    "grid": WholeGrid,
    "random": partial(ThisProject, sampler="random"),
    "Ray OptunaSearch": RayOptuna,
    "Ray OptunaSearch, ASHA": partial(RayOptuna, asha=REPORT_EVERY),
    "this project": ThisProject,
    "this project, early stopping": partial(ThisProject, early_stopping=EarlyStoppingConfig()),
    "this project, stopping by a sum": partial(
        ThisProject,
        early_stopping=EarlyStoppingConfig(metrics={IN_DOMAIN_ACC: 1, FORGETTING_MEAN: -1}),
    ),
}


@cache
def table_of_process() -> Table:
    import optuna

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return Table(Grid.read())


def one(job: tuple[str, int]) -> Run:
    name, seed = job
    return run(table_of_process(), SEARCHES[name], seed, SHARE_OF_GRID)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="default: 20")
    seeds = range(FIRST_SEED, FIRST_SEED + parser.parse_args().seeds)
    table = table_of_process()
    jobs = [(name, seed) for name in SEARCHES for seed in seeds]
    with ProcessPoolExecutor() as pool:
        runs = dict(zip(jobs, pool.map(one, jobs, chunksize=4), strict=True))
    report = {
        "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: version(name) for name in ("ray", "optuna")},
        "seeds": [seeds.start, seeds.stop - 1],
        "workers": WORKERS,
        "grid": {"points": len(table.points), "steps": table.steps, "share": ENOUGH},
        "searches": {
            name: summary(table, [runs[name, seed] for seed in seeds]) for name in SEARCHES
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def summary(table: Table, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of one search over its seeds; steps are shares of the grid's."""
    generator = np.random.default_rng(0)
    budgets = [(index + 1) / CURVE_POINTS for index in range(round(CURVE_POINTS * SHARE_OF_GRID))]
    curve = {}
    for budget in sorted({*budgets, *SHOWN}):
        shares = np.array([run.share_at(budget * table.steps) for run in runs])
        low, high = interval(shares, generator)
        curve[f"{budget:g}"] = [round(value, 4) for value in (shares.mean(), low, high)]
    enough = [run.enough_at / table.steps for run in runs]
    return {
        "found": curve,
        "enough_at": [round(at, 4) if math.isfinite(at) else None for at in enough],
        "enough_at_median": round(at, 4) if math.isfinite(at := median(enough)) else None,
        "enough_in_a_quarter": sum(at <= 0.25 for at in enough),
        "trials_started": float(np.mean([run.started for run in runs])),
    }


def show(report: dict[str, Any]) -> None:
    first, last = report["seeds"]
    print(f"share of the grid's hypervolume, seeds {first} to {last}, 95 % bootstrap intervals")
    columns = "".join(f"{f'at {budget:g} of its steps':>25}" for budget in SHOWN)
    print(f"{'':32}{columns}   {ENOUGH:g} reached at, by 0.25")
    for name, figures in report["searches"].items():
        cells = ""
        for budget in SHOWN:
            mean, low, high = figures["found"][f"{budget:g}"]
            cells += f"{f'{mean:.3f} [{low:.3f}, {high:.3f}]':>25}"
        at = figures["enough_at_median"]
        told = "never" if at is None else f"{at:.3f}"
        count = len(figures["enough_at"])
        print(f"{name:32}{cells}   {told:>15}, {figures['enough_in_a_quarter']} of {count}")


if __name__ == "__main__":
    main()
