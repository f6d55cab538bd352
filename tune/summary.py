"""What a sweep found: its Pareto front, the trial to take, a table of all, and the last words."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from trainables import metric_keys
from trainables.ledger import SweepFolder
from trainables.records import TrialRecord, TrialStatus
from trainables.storage import Location
from tune.console import (
    ABSENT,
    STATUS,
    count_statuses,
    metric_text,
    one_line,
    rate,
    setting,
    status_in_full,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

    from tune.sweep_config import Constraint, SweepConfig

_FAILURES = (
    TrialStatus.DIVERGED,
    TrialStatus.OUT_OF_MEMORY,
    TrialStatus.FAILED,
    TrialStatus.CANCELLED,
)
_MOST_REASONS = 8
_MOST_NUMBERS = 10
_MOST_ON_FRONT = 20
_TITLES = {
    metric_keys.IN_DOMAIN_ACC: "in-domain",
    metric_keys.FORGETTING_MEAN: "forgetting",
    metric_keys.OOD_ACC: "OOD",
}


@dataclass(frozen=True)
class Recommendation:
    """The trial to take, and why, in one sentence.

    Attributes:
        trial: always a complete one.
        reason: derived from the records.
        feasible: whether it keeps every constraint.
    """

    trial: TrialRecord
    reason: str
    feasible: bool = True


def pareto_front(config: SweepConfig, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Complete trials within all constraints that no other dominates, by number.

    A trial that lacks an objective or a constrained metric is not on it.
    """
    import optuna

    ranked = {r.number: r for r in records if _objectives(config, r) is not None}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            directions=["minimize" if o.mode == "min" else "maximize" for o in config.objectives]
        )
        study.add_trials(
            optuna.trial.create_trial(
                values=_objectives(config, record),
                user_attrs={"number": number},
                constraints={
                    f"{index}: {constraint}": _violation(constraint, record)
                    for index, constraint in enumerate(config.constraints)
                },
            )
            for number, record in ranked.items()
        )
        best = study.best_trials
    finally:
        optuna.logging.set_verbosity(verbosity)
    return [ranked[number] for number in sorted(trial.user_attrs["number"] for trial in best)]


def recommend(config: SweepConfig, records: Sequence[TrialRecord]) -> Recommendation | None:
    """The trial to take; None where no complete trial has every objective.

    With one objective the best; with several the knee of the Pareto front, the trial nearest to
    the best of every objective after scaling each to [0, 1] over the front. Where no trial keeps
    the constraints, the one that misses them by the least in total. The lower number wins a tie.
    """
    ranked = [record for record in records if _objectives(config, record) is not None]
    if not ranked:
        return None
    front = pareto_front(config, ranked)
    if not front:
        return _least_infeasible(config, ranked)
    if len(config.objectives) == 1:
        return _best(config, front, ranked)
    return _knee(config, front, ranked)


def _objectives(config: SweepConfig, record: TrialRecord) -> list[float] | None:
    if record.status is not TrialStatus.COMPLETE or record.confirms is not None:
        return None
    values = [record.metric(objective.metric) for objective in config.objectives]
    found = [value for value in values if value is not None and math.isfinite(value)]
    return found if len(found) == len(values) else None


def _violation(constraint: Constraint, record: TrialRecord) -> float:
    value = record.metric(constraint.metric)
    return math.inf if value is None or math.isnan(value) else constraint.violation(value)


def _least_infeasible(config: SweepConfig, ranked: list[TrialRecord]) -> Recommendation:
    def total(record: TrialRecord) -> float:
        return sum(max(_violation(c, record), 0.0) for c in config.constraints)

    trial = min(ranked, key=lambda record: (total(record), record.number))
    broken = [
        f"{c.metric} is {_exactly(trial.metric(c.metric))}, not {c.operator} {c.bound:g}"
        for c in config.constraints
        if _violation(c, trial) > 0
    ]
    reason = (
        f"no trial keeps every constraint, and of {_trials(len(ranked))} this one misses them by "
        f"the least: {' and '.join(broken)}."
    )
    return Recommendation(trial, reason, feasible=False)


def _exactly(value: float | None) -> str:
    """Finer than elsewhere: 0.0502 is not <= 0.05, but 0.050 would seem to be."""
    return "missing" if value is None else f"{value:.4g}"


def _best(
    config: SweepConfig, front: list[TrialRecord], ranked: list[TrialRecord]
) -> Recommendation:
    objective = config.objectives[0]
    value = metric_text(objective.metric, front[0].metric(objective.metric))
    extreme = "lowest" if objective.mode == "min" else "highest"
    kept = " that keep every constraint" if config.constraints else ""
    reason = f"{extreme} {objective.metric} ({value}) of {_trials(_feasible(config, ranked))}{kept}"
    return Recommendation(front[0], f"{reason}{_as_good(front[1:])}.")


def _knee(
    config: SweepConfig, front: list[TrialRecord], ranked: list[TrialRecord]
) -> Recommendation:
    distances = {record.number: _distance_to_ideal(config, record, front) for record in front}
    least = min(distances.values())
    trial, *others = [record for record in front if distances[record.number] == least]
    told = ", ".join(
        f"{o.metric} {metric_text(o.metric, trial.metric(o.metric))}" for o in config.objectives
    )
    if len(front) == 1:
        count = _trials(_feasible(config, ranked))
        return Recommendation(trial, f"best in every objective of {count}: {told}.")
    reason = (
        f"the knee of the front's {len(front)} trials, nearest to the best of every objective at "
        f"once: {told}"
    )
    return Recommendation(trial, f"{reason}{_as_good(others)}.")


def _distance_to_ideal(config: SweepConfig, record: TrialRecord, front: list[TrialRecord]) -> float:
    scaled = []
    for objective in config.objectives:
        values = [value for r in front if (value := r.metric(objective.metric)) is not None]
        best, worst = min(values), max(values)
        if objective.mode == "max":
            best, worst = worst, best
        own = record.metric(objective.metric) or 0.0
        scaled.append((own - best) / (worst - best) if worst != best else 0.0)
    # Rounding makes ties of what differs by nothing but the order of float operations.
    return round(math.hypot(*scaled), 9)


def _feasible(config: SweepConfig, ranked: list[TrialRecord]) -> int:
    return sum(all(_violation(c, r) <= 0 for c in config.constraints) for r in ranked)


def _trials(count: int) -> str:
    return "1 complete trial" if count == 1 else f"{count} complete trials"


def _as_good(others: list[TrialRecord]) -> str:
    return f" (as good: {_numbers(others)})" if others else ""


def _numbers(records: Sequence[TrialRecord]) -> str:
    numbers = ", ".join(str(record.number) for record in records[:_MOST_NUMBERS])
    more = len(records) - _MOST_NUMBERS
    told = f"trial{'s' if len(records) > 1 else ''} {numbers}"
    return f"{told} and {more} more" if more > 0 else told


def write_results_csv(file: Path, records: Sequence[TrialRecord]) -> None:
    """One row per trial, failed ones included, by number; all of the file is replaced or none."""
    finals = _key_order(key for r in records if r.last for key in r.last.metrics)
    bests = _key_order(key for r in records for key in r.best)
    rows = [_row(record, finals, bests) for record in sorted(records, key=lambda r: r.number)]
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*_SETTING_COLUMNS, *finals, *(f"best/{key}" for key in bests)])
        writer.writerows(rows)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


_SETTING_COLUMNS = (
    "number",
    "trial_id",
    "confirms",
    "seed",
    "method",
    "rank",
    "alpha",
    "scaling",
    "learning_rate",
    "target_modules",
    "dropout",
    "rslora",
    "dora",
    "batch_size",
    "micro_batch_size",
    "epochs",
    "status",
    "reason",
    "seconds",
    "weights_dir",
    "best_weights_dir",
)


def _row(record: TrialRecord, finals: list[str], bests: list[str]) -> list[object]:
    config = record.config
    lora = config.lora
    modules = lora.target_modules if lora else None
    return [
        record.number,
        config.trial_id,
        record.confirms,
        config.seed,
        config.method,
        *((lora.rank, lora.alpha, lora.scaling) if lora else (None, None, None)),
        config.learning_rate,
        " ".join(modules) if isinstance(modules, tuple) else modules,
        *((lora.dropout, lora.rslora, lora.dora) if lora else (None, None, None)),
        *(config.train.batch_size, config.train.micro_batch_size, config.train.epochs),
        record.status.value,
        record.reason,
        None if record.ended is None else record.ended - record.started,
        record.weights_dir,
        record.best_weights_dir,
        *(record.metric(key) for key in finals),
        *(record.best.get(key) for key in bests),
    ]


def _key_order(keys: Iterable[str]) -> list[str]:
    """As METRICS lists them, then the others by name."""
    found = set(keys)
    listed = [key for key in metric_keys.METRICS if key in found]
    return listed + sorted(found - set(listed))


def print_summary(
    console: Console,
    config: SweepConfig,
    records: Sequence[TrialRecord],
    folder: Location,
    hints: list[str],
) -> None:
    """Say what the sweep found, what failed, where everything lies and what to type next."""
    counted = f": {count_statuses(records)}" if records else ""
    count = {0: "no trials", 1: "1 trial"}.get(len(records), f"{len(records)} trials")
    _say(console, f"\n{config.name}: {count}{counted}", "bold")
    recommendation = recommend(config, records)
    _print_front(console, config, records)
    _print_recommendation(console, recommendation)
    _print_failures(console, records)
    _print_places(console, recommendation, folder)
    _print_next(console, recommendation, hints)


def _print_front(console: Console, config: SweepConfig, records: Sequence[TrialRecord]) -> None:
    front = pareto_front(config, records)
    if not front:
        return
    goal = ", ".join(f"{objective.mode} {objective.metric}" for objective in config.objectives)
    bounds = "".join(f", {constraint}" for constraint in config.constraints)
    title = "Pareto front" if len(config.objectives) > 1 else "Best"
    _say(console, f"\n{title} ({goal}{bounds}):", "bold")
    named = [objective.metric for objective in config.objectives]
    named += [constraint.metric for constraint in config.constraints]
    # Metrics that no trial of the sweep logs, such as OOD without OOD tasks, get no column.
    keys = [
        k for k in dict.fromkeys([*named, *_TITLES]) if any(r.metric(k) is not None for r in front)
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("trial", "rank", "alpha", "lr", *(_TITLES.get(key, key) for key in keys)):
        table.add_column(column, justify="right", overflow="fold")
    for record in _sorted_by_first(config, front)[:_MOST_ON_FRONT]:
        lora = record.config.lora
        table.add_row(
            str(record.number),
            str(lora.rank) if lora else record.config.method,
            f"{lora.alpha:g}" if lora else ABSENT,
            rate(record.config.learning_rate),
            *(metric_text(key, record.metric(key)) for key in keys),
        )
    console.print(table)
    if len(front) > _MOST_ON_FRONT:
        _say(console, f"and {len(front) - _MOST_ON_FRONT} more, see results.csv")


def _sorted_by_first(config: SweepConfig, front: list[TrialRecord]) -> list[TrialRecord]:
    """From the best in the first objective to the worst: the front as one walks along it."""
    objective = config.objectives[0]
    return sorted(
        front, key=lambda r: r.metric(objective.metric) or 0.0, reverse=objective.mode == "max"
    )


def _print_recommendation(console: Console, recommendation: Recommendation | None) -> None:
    if recommendation is None:
        _say(console, "\nNo trial to recommend: none is complete with every objective.", "bold")
        return
    trial = recommendation.trial
    style = "bold green" if recommendation.feasible else "bold yellow"
    _say(console, f"\nRecommended: trial {trial.number} ({setting(trial.config)})", style)
    _say(console, f"  {recommendation.reason}")


def _print_failures(console: Console, records: Sequence[TrialRecord]) -> None:
    groups: dict[tuple[TrialStatus, str], list[TrialRecord]] = {}
    for record in records:
        if record.status in _FAILURES:
            reason = one_line(record.reason or "no reason given")
            groups.setdefault((record.status, reason), []).append(record)
    if not groups:
        return
    _say(console, "\nNot trained to the end:", "bold")
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1][0].number))
    for (status, reason), failed in ordered[:_MOST_REASONS]:
        line = f"  {len(failed)} x {status_in_full(status)}: {reason} ({_numbers(failed)})"
        _say(console, line, STATUS[status].style)
    if len(ordered) > _MOST_REASONS:
        _say(console, f"  and {len(ordered) - _MOST_REASONS} more reasons, see results.csv")


def _print_places(console: Console, recommendation: Recommendation | None, root: Location) -> None:
    folder = SweepFolder(root)
    _say(console, "\nResults:", "bold")
    _say(console, f"  everything   {root}")
    _say(console, f"  all trials   {folder.place(folder.results_csv)}")
    if recommendation is not None:
        kept = recommendation.trial.weights_dir or "not kept (train.save_weights is false)"
        _say(console, f"  weights      {kept}")


def _print_next(console: Console, recommendation: Recommendation | None, hints: list[str]) -> None:
    weights = recommendation.trial.weights_dir if recommendation else None
    lines = list(hints)
    if recommendation is not None and weights is not None:
        package, name = (
            ("peft", "AutoPeftModelForCausalLM")
            if recommendation.trial.config.method == "lora"
            else ("transformers", "AutoModelForCausalLM")
        )
        lines.append(f"from {package} import {name}; model = {name}.from_pretrained({weights!r})")
    if lines:
        _say(console, "\nNext:", "bold")
    for line in lines:
        _say(console, f"  {line}")


def _say(console: Console, line: str, style: str = "") -> None:
    """One line however long, so that commands and paths can be copied."""
    console.print(Text(line, style), soft_wrap=True, highlight=False)
