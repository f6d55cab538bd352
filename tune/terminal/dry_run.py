"""`--dry-run`: what would run, shown without a GPU or a cluster, and where need be a network."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from trainables.config import TrainConfig, TrialConfig
from trainables.files.storage import Location, join
from trainables.results.folder import SweepFolder
from trainables.results.ledger import Ledger
from trainables.results.records import TrialRecord, TrialStatus
from tune.cluster.memory_fit import disk_space, host_memory, memory_table
from tune.config.sweep_config import SweepConfig
from tune.folder.input_files import digests
from tune.search.earlier_trials import EarlierTrials, earlier_trials
from tune.search.searcher import OptunaSearcher
from tune.search.space import grid_size, planned_runs, planned_trials
from tune.search.trials import make_trial, reason_against_slots

_POINTS_SHOWN = 8


def print_plan(config: SweepConfig, samples: int | None, output_dir: Location) -> None:
    """Print the resolved configuration, the first points, resources and an estimate.

    Args:
        config: the sweep.
        samples: number of samples that the data make; None if it is not known yet.
        output_dir: searched for an earlier run of the sweep, whose times are used.

    Raises:
        UserError: the sweep cannot go on from that run, or start from those of `warm_start`.
    """
    earlier = _earlier_trials(config, output_dir)
    console = Console()
    plan = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()
    console.print(plan, markup=False, highlight=False, soft_wrap=True)
    points = list(islice(_suggestions(config), min(_POINTS_SHOWN, config.budget.trials)))
    console.print(_points_table(config, points))
    console.print(memory_table(config))
    lines = [*host_memory(config), *disk_space(config), *_resources(config)]
    lines += _estimate(config, points, samples, earlier.own)
    for line in [*earlier.warm_start_in_words(), *lines]:
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _earlier_trials(config: SweepConfig, output_dir: Location) -> EarlierTrials:
    """What a start would go on from, as far as that is known."""
    try:
        ledger = Ledger(join(output_dir, config.name))
        if ledger.exists() or config.warm_start:
            return earlier_trials(config, ledger, digests(config))
    except (OSError, ValueError):  # no network, or no such store: the sweep itself says so
        pass
    return EarlierTrials([], [], [], is_new=True)


def _suggestions(config: SweepConfig) -> Any:
    """Points that the search would suggest before any result is in."""
    folder = SweepFolder(Path(config.name))
    searcher = OptunaSearcher(
        config,
        lambda number, params, attempt, seed: make_trial(
            config, config.name, folder, {}, number, params, attempt, seed
        ),
    )
    while isinstance(suggestion := searcher.suggest(""), dict):
        yield TrialConfig.model_validate(suggestion["trial"])


def _points_table(config: SweepConfig, points: list[TrialConfig]) -> Table:
    table = Table(
        title=f"first {len(points)} of {planned_trials(config)} trials{_left_out(config)}",
        title_justify="left",
    )
    for heading in ("trial", "method", "rank", "alpha", "scaling", "learning rate", "batch"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for point in points:
        lora = point.lora
        table.add_row(
            str(point.number),
            point.method,
            str(lora.rank) if lora else "-",
            f"{lora.alpha:g}" if lora else "-",
            f"{lora.scaling:.3g}" if lora else "-",
            f"{point.learning_rate:.2e}",
            str(point.train.batch_size),
        )
    return table


def _left_out(config: SweepConfig) -> str:
    """Of a grid that the budget cuts, how large it is."""
    points = grid_size(config.search) if config.sampler == "grid" else None
    return f", of the grid's {points} points" if points and points > planned_trials(config) else ""


def _resources(config: SweepConfig) -> list[str]:
    lines = []
    for method in config.search.methods:
        resources = config.resources.of(method)
        gpus = resources.gpus_per_worker
        gpu_type = resources.accelerator_type
        if gpu_type:
            each = f"{gpus or 1:g} {gpu_type} GPU"
        else:
            each = "1 GPU where there is one" if gpus is None else f"{gpus:g} GPU"
        lines.append(
            f"{method}: {resources.workers} worker(s) a trial, each with "
            f"{resources.cpus_per_worker:g} CPU and {each}"
        )
    if slots := config.resources.lora.slots:
        number = "as many as end it first" if slots == "auto" else f"{slots}"
        together = f"trials train together in slots of one base, {number} at a time"
        alone = reason_against_slots(config)
        lines.append(f"lora: {f'trials train one by one: {alone}' if alone else together}")
    return lines


def _estimate(
    config: SweepConfig, points: list[TrialConfig], samples: int | None, earlier: list[TrialRecord]
) -> list[str]:
    lines = []
    trials = planned_runs(config)
    if samples is None:
        told = _evaluations(points[0].train)
        lines.append(f"estimate: {told} a trial; the rest is known once the data are tokenised")
    else:
        steps = [point.train.total_steps(samples) for point in points]
        mean = sum(steps) / len(steps)
        reports = points[0].train.evaluations(samples)
        each = [s * point.train.batch_size for s, point in zip(steps, points, strict=True)]
        seen = trials * sum(each) / len(each)
        lines.append(
            f"estimate: {samples} samples, about {mean:.0f} optimizer steps and {reports} "
            f"evaluations a trial, {seen:,.0f} samples trained on in all {trials} trials"
        )
    done = [r.seconds for r in earlier if r.status is TrialStatus.COMPLETE]
    if taken := [seconds for seconds in done if seconds is not None]:
        seconds = fmean(taken)
        total = seconds * trials / 3600
        lines.append(
            f"estimate: {seconds:.0f} s a trial in the earlier run, {total:.2f} h for "
            f"{trials} one after another"
        )
    else:
        lines.append("estimate: time is known once a first trial of this sweep has run")
    return lines


def _evaluations(train: TrainConfig) -> str:
    """How often a trial is evaluated, where the number of samples is not known."""
    if (count := train.evaluations(None)) is None:
        return f"an evaluation every {train.report_every:g} optimizer steps, and at the end,"
    return f"{'' if train.steps else 'about '}{count} evaluations"
