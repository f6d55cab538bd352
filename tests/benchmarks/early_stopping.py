"""Early stopping compared: `python tests/benchmarks/early_stopping.py`.

Trials with made-up learning curves run side by side in virtual time until a budget of trial-steps
is spent. This project's rule, Ray's ASHAScheduler and Optuna's two halving pruners, each the real
object, decide who goes on; what the search suggests and is told is the same for all. Prints a
table, and writes it with every seed's value to early_stopping.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import TrialState

sys.path[:1] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]

from benchmarks.virtual_time import interval, run_side_by_side  # noqa: E402

from trainables.config import Objective, TrainConfig  # noqa: E402
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, task_score  # noqa: E402
from trainables.records.schema import Measurement  # noqa: E402
from tune.config.sweep_config import EarlyStoppingConfig  # noqa: E402
from tune.search.early_stopping import SuccessiveHalving  # noqa: E402

TOTAL_STEPS, FIRST_RUNG, REDUCTION = 81, 9, 3  # rungs at 9 and 27
REPORT_EVERY = 3
WORKERS = 8
BUDGET = 24 * TOTAL_STEPS  # trial-steps: 24 whole trainings
ITEMS = 200  # of an evaluation, whose noise is binomial
BASE_ACCURACY = 0.25
FIRST_SEED = 100  # seeds below were looked at when the project's rule was chosen
WORST_FORGETTING = 0.6  # of the hypervolume's reference point
TASKS: dict[str, dict[str, float]] = {
    "accuracy": {IN_DOMAIN_ACC: 1.0},
    "pair": {IN_DOMAIN_ACC: 1.0, FORGETTING_MEAN: -1.0},
}
Params = dict[str, float]
Sampler = Literal["random", "tpe"]


@dataclass(frozen=True)
class Curve:
    """Accuracy and forgetting of a LoRA training over its steps.

    Accuracy saturates at an asymptote that falls off either side of a learning rate which is the
    lower the higher the rank; the higher the rate the faster it rises, so a bold trial leads at
    first and is overtaken. A rate beyond the edge of stability loses again what it had gained.
    Forgetting grows with the square root of the steps and with the size of the update.
    """

    asymptote: float
    speed: float
    decay: float
    forgetting: float

    @classmethod
    def of(cls, params: Params) -> Curve:
        rank, rate, ratio = params["rank"], params["rate"], params["alpha_ratio"]
        effort = math.log10(rate) + math.log10(ratio) / 2
        best = -3.4 - 0.25 * math.log2(rank / 8) / 4
        capacity = 0.52 + 0.12 * (1 - math.exp(-rank / 12))
        distance = effort - best
        return cls(
            asymptote=capacity * math.exp(-((distance / 0.75) ** 2)),
            speed=3.0 * 10 ** (0.6 * distance),
            decay=max(0.0, distance - 0.5) * 0.6,
            forgetting=0.16 * 10 ** (0.5 * distance) * (rank / 16) ** 0.15,
        )

    def at(self, step: int) -> dict[str, float]:
        """Both metrics as they truly are."""
        share = step / TOTAL_STEPS
        gain = self.asymptote * (1 - math.exp(-self.speed * share)) - self.decay * share**2
        forgetting = self.forgetting * math.sqrt(share)
        accuracy = min(0.99, max(0.01, BASE_ACCURACY + gain))
        return {IN_DOMAIN_ACC: accuracy, FORGETTING_MEAN: forgetting}

    def measured(self, step: int, generator: np.random.Generator) -> dict[str, float]:
        """Both as an evaluation over so many items finds them, and their standard errors."""
        true = self.at(step)
        accuracy = generator.binomial(ITEMS, true[IN_DOMAIN_ACC]) / ITEMS
        error = math.sqrt(0.25 / ITEMS)
        return {
            IN_DOMAIN_ACC: accuracy,
            task_score("in_domain", "task", "acc_stderr"): math.sqrt(
                accuracy * (1 - accuracy) / (ITEMS - 1)
            ),
            FORGETTING_MEAN: true[FORGETTING_MEAN] + generator.normal(0, error),
            task_score("retention", "task", "acc_stderr"): error,
        }


# A rule says whether a trial shall stop: (number, step, metrics, score, Optuna's trial).
Rule = Callable[[int, int, dict[str, float], float, optuna.Trial | None], bool]


def no_stopping(*_: Any) -> bool:
    """Every trial to its end."""
    return False


def this_project(weights: dict[str, float]) -> Rule:
    """`tune.search.early_stopping`, which goes by the objectives unless told otherwise."""
    objectives = [
        Objective(metric=metric, mode="max" if weight > 0 else "min")
        for metric, weight in weights.items()
    ]
    return halving(None, objectives)


def this_project_by_sum(weights: dict[str, float]) -> Rule:
    """The same, told to compare by the weighted sum that the others go by."""
    return halving(weights, [])


def halving(weights: dict[str, float] | None, objectives: list[Objective]) -> Rule:
    config = EarlyStoppingConfig(
        metrics=weights, reduction_factor=REDUCTION, first_rung=FIRST_RUNG / TOTAL_STEPS
    )
    rule = SuccessiveHalving(config, objectives)

    def stops(
        number: int, step: int, metrics: dict[str, float], score: float, _: optuna.Trial | None
    ) -> bool:
        measurement = Measurement(step=step, total_steps=TOTAL_STEPS, metrics=metrics, time=0.0)
        return rule.decide(number, measurement, TrainConfig()) is not None

    return stops


def ray_asha(
    weights: dict[str, float], total_steps: int = TOTAL_STEPS, first_rung: int = FIRST_RUNG
) -> Rule:
    """Ray's, driven as its trial runner does."""
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    scheduler: Any = ASHAScheduler(
        time_attr="step",
        metric="score",
        mode="max",
        max_t=total_steps,
        grace_period=first_rung,
        reduction_factor=REDUCTION,
    )
    trials: dict[int, Any] = {}

    def stops(
        number: int, step: int, metrics: dict[str, float], score: float, _: optuna.Trial | None
    ) -> bool:
        if number not in trials:
            trials[number] = SimpleNamespace(trial_id=str(number))
            scheduler.on_trial_add(None, trials[number])
        result = {"step": step, "score": score}
        action = scheduler.on_trial_result(None, trials[number], result)
        return bool(action == TrialScheduler.STOP)

    return stops


def optunas(weights: dict[str, float]) -> Rule:
    """Whatever pruner the study has."""

    def stops(
        number: int, step: int, metrics: dict[str, float], score: float, trial: optuna.Trial | None
    ) -> bool:
        assert trial is not None
        return trial.should_prune()

    return stops


METHODS: dict[str, tuple[Callable[[dict[str, float]], Rule], Callable[[], Any]]] = {
    "this project": (this_project, optuna.pruners.NopPruner),
    "this project, by the sum": (this_project_by_sum, optuna.pruners.NopPruner),
    "Ray ASHA": (ray_asha, optuna.pruners.NopPruner),
    "Optuna halving": (
        optunas,
        partial(
            optuna.pruners.SuccessiveHalvingPruner,
            min_resource=FIRST_RUNG,
            reduction_factor=REDUCTION,
        ),
    ),
    "Optuna Hyperband": (
        optunas,
        partial(
            optuna.pruners.HyperbandPruner,
            min_resource=FIRST_RUNG,
            max_resource=TOTAL_STEPS,
            reduction_factor=REDUCTION,
        ),
    ),
    "none": (lambda weights: no_stopping, optuna.pruners.NopPruner),
}


@dataclass(frozen=True)
class Found:
    """What a search has at the end: best true score, hypervolume, how many trials it took."""

    best: float
    hypervolume: float
    started: int
    completed: int


def search(method: str, task: str, sampler: Sampler, seed: int) -> Found:
    """Run trials side by side until the budget is spent."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    weights = TASKS[task]
    make_rule, make_pruner = METHODS[method]
    # Hyperband draws brackets from the study's name.
    study = optuna.create_study(study_name=str(seed), direction="maximize", pruner=make_pruner())
    rule = make_rule(weights)
    done: list[tuple[float, Curve]] = []
    running: dict[int, tuple[optuna.Trial, Curve, np.random.Generator, int]] = {}

    def start(number: int) -> bool:
        study.sampler = seeded_sampler(sampler, seed, number)
        trial = study.ask()
        running[number] = (trial, Curve.of(suggest(trial)), generator_of(seed, number), 0)
        return True

    def advance(number: int) -> tuple[int, bool]:
        trial, curve, generator, step = running.pop(number)
        step += REPORT_EVERY
        metrics = curve.measured(step, generator)
        score = scalar(weights, metrics)
        trial.report(score, step)
        if step >= TOTAL_STEPS:
            study.tell(trial, score)
            done.append((score, curve))
            return REPORT_EVERY, True
        if rule(number, step, metrics, score, trial):
            study.tell(trial, state=TrialState.PRUNED)
            return REPORT_EVERY, True
        running[number] = (trial, curve, generator, step)
        return REPORT_EVERY, False

    started = run_side_by_side(WORKERS, BUDGET, seed, start, advance)
    # The one that looks best is taken; what it is worth is its true score.
    chosen = max(done, key=lambda pair: pair[0])[1]
    ends = [curve.at(TOTAL_STEPS) for _, curve in done]
    return Found(
        best=scalar(weights, chosen.at(TOTAL_STEPS)),
        hypervolume=hypervolume((e[IN_DOMAIN_ACC], e[FORGETTING_MEAN]) for e in ends),
        started=started,
        completed=len(done),
    )


def suggest(trial: optuna.Trial) -> Params:
    return {
        "rank": trial.suggest_categorical("rank", [2, 4, 8, 16, 32, 64, 128]),
        "rate": trial.suggest_float("rate", 1e-5, 1e-2, log=True),
        "alpha_ratio": trial.suggest_categorical("alpha_ratio", [0.5, 1, 2, 4]),
    }


def scalar(weights: dict[str, float], metrics: dict[str, float]) -> float:
    return sum(weight * metrics[metric] for metric, weight in weights.items())


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """Area dominated between the front (gain up, forgetting down) and the reference point."""
    area, highest = 0.0, BASE_ACCURACY
    for gain, forgetting in sorted(points, key=lambda point: point[1]):
        if gain > highest and forgetting < WORST_FORGETTING:
            area += (gain - highest) * (WORST_FORGETTING - forgetting)
            highest = gain
    return area


def seeded_sampler(sampler: Sampler, seed: int, number: int) -> Any:
    """Seeded per trial, as the project's searcher does: random suggestions are then the same."""
    digest = int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
    if sampler == "random":
        return optuna.samplers.RandomSampler(seed=digest)
    return optuna.samplers.TPESampler(seed=digest, constant_liar=True, multivariate=True)


def generator_of(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number])


def one(job: tuple[str, str, Sampler, int]) -> Found:
    return search(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="default: 20")
    seeds = range(FIRST_SEED, FIRST_SEED + parser.parse_args().seeds)
    samplers: tuple[Sampler, ...] = ("random", "tpe")
    jobs = [(m, t, s, seed) for t in TASKS for s in samplers for m in METHODS for seed in seeds]
    with ProcessPoolExecutor() as pool:
        found = dict(zip(jobs, pool.map(one, jobs, chunksize=4), strict=True))
    rows = [
        row(found, method, task, sampler, measure, seeds)
        for task, measure in (("accuracy", "best"), ("pair", "best"), ("pair", "hypervolume"))
        for sampler in samplers
        for method in METHODS
    ]
    report = {
        "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: version(name) for name in ("ray", "optuna")},
        "seeds": [seeds.start, seeds.stop - 1],
        "budget_steps": BUDGET,
        "steps_of_a_training": TOTAL_STEPS,
        "workers": WORKERS,
        "rows": rows,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def row(
    found: dict[Any, Found], method: str, task: str, sampler: str, measure: str, seeds: range
) -> dict[str, Any]:
    """One line of the table; differences are paired by seed."""
    generator = np.random.default_rng(0)
    runs = [found[method, task, sampler, seed] for seed in seeds]
    ours = [found["this project", task, sampler, seed] for seed in seeds]
    values = np.array([getattr(run, measure) for run in runs])
    ahead = np.array([getattr(run, measure) for run in ours]) - values
    return {
        "task": task,
        "sampler": sampler,
        "measure": measure,
        "method": method,
        "mean": float(values.mean()),
        "interval": interval(values, generator),
        "this_project_ahead_by": float(ahead.mean()),
        "ahead_interval": interval(ahead, generator),
        "trials_started": float(np.mean([run.started for run in runs])),
        "trials_completed": float(np.mean([run.completed for run in runs])),
        "values": values.tolist(),
    }


def show(report: dict[str, Any]) -> None:
    first, last = report["seeds"]
    print(f"seeds {first} to {last}, 95 % bootstrap intervals; {report['machine']}")
    title = None
    for line in report["rows"]:
        if title != (title := f"{line['task']}, {line['sampler']}: {line['measure']}"):
            print(f"\n{title:36}{'mean':>7} {'interval':>17}   this project ahead by    trials")
        low, high = line["interval"]
        least, most = line["ahead_interval"]
        print(
            f"  {line['method']:34}{line['mean']:7.4f} [{low:.4f}, {high:.4f}]"
            f"   {line['this_project_ahead_by']:+.4f} [{least:+.4f}, {most:+.4f}]"
            f"   {line['trials_started']:.0f}, {line['trials_completed']:.0f} to their end"
        )


if __name__ == "__main__":
    main()
