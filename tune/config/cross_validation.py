"""Checks of sections of a sweep file against each other; each may be right by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainables.errors import Fault, did_you_mean
from trainables.storage.locations import is_local
from trainables.workers.gpu_types import SMALLEST_SHARE
from tune.config.choices import LogUniform
from tune.config.recipe_checks import recipe_contradictions
from tune.config.recipe_space import REPLAY_AXES
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_metrics import defined_metrics, missing_input, unlogged_metrics

_BETTER = {"min": "lower it is", "max": "higher it is"}


def contradictions(config: SweepConfig) -> list[Fault]:
    """Every way in which sections of a sweep file contradict each other."""
    checks = (
        *(recipe_contradictions, _batches, _gpus, _data, _replay, _metrics),
        *(_sampler, _objectives, _bounds, _weights, _first_points, _repairs),
    )
    return [fault for check in checks for fault in check(config)]


def _batches(config: SweepConfig) -> Iterator[Fault]:
    for recipe in config.search.recipes:
        field, sizes = config.batch_sizes(recipe)
        workers, micro = config.recipe_resources(recipe).workers, config.train.micro_batch_size
        per_pass = micro * workers
        for size in sizes:
            if size % per_pass:
                yield Fault(
                    field,
                    "must be a multiple of train.micro_batch_size x "
                    f"{config.resources_field(recipe)}.workers = {per_pass}, got {size}",
                    f"raise it to {size + -size % per_pass}"
                    if size % workers
                    else f"set train.micro_batch_size to {math.gcd(micro, size // workers)}",
                )


def _replay(config: SweepConfig) -> Iterator[Fault]:
    for recipe in config.search.recipes:
        given = [axis for axis in REPLAY_AXES if getattr(config.search.space(recipe), axis)]
        if given and config.data.replay is None:
            rule = "needs data.replay, which is not given"
            remedy = "name the data to replay: data.replay={path: general.jsonl, share: 0.1}"
            yield Fault(f"search.{recipe}.{given[0]}", rule, remedy)


def _repairs(config: SweepConfig) -> Iterator[Fault]:
    if "seed_mean" in config.repairs and config.confirm is None:
        remedy = "set confirm, or leave seed_mean out"
        yield Fault("rewind.repair", "seed_mean needs trainings with other seeds", remedy)


def _gpus(config: SweepConfig) -> Iterator[Fault]:
    """A worker trains on one GPU, or on a share of one if it is its trial's only worker."""
    resources = {
        config.resources_field(r): config.recipe_resources(r) for r in config.search.recipes
    }
    typed = [section for section, own in resources.items() if own.accelerator_type]
    for section, own in resources.items():
        field, gpus = f"{section}.gpus_per_worker", own.gpus_per_worker
        if own.accelerator_type and gpus == 0:
            rule = f"must be above 0 on {own.accelerator_type}, got 0"
            yield Fault(field, rule, "leave accelerator_type out to train on CPUs")
        elif typed and not own.accelerator_type and gpus != 0:
            yield Fault(
                f"{section}.accelerator_type",
                f"must be given as {typed[0]} has one, got none",
                "else its trials may take the GPUs of that type",
            )
        if gpus is None or gpus in (0, 1):
            continue
        if gpus > 1:
            remedy = f"set {section}.workers for a trial on several"
            yield Fault(field, f"a worker trains on one GPU, got {gpus:g}", remedy)
        elif gpus < SMALLEST_SHARE:
            yield Fault(field, f"must be 0 or at least {SMALLEST_SHARE:g}, got {gpus:g}")
        elif own.workers > 1:
            rule = f"workers of one trial cannot share a GPU, got {gpus:g}"
            yield Fault(field, rule, "set it to 1, or workers to 1")


def _data(config: SweepConfig) -> Iterator[Fault]:
    data, split = config.data, config.data.validation_split
    is_of_hub = data.validation_path is not None and not is_local(data.validation_path)
    if split is not None and not is_of_hub:
        yield Fault(
            "data.validation_split",
            f"needs a hub data set in validation_path, got {split}",
            "name one there, or leave the split out",
        )
    elif not (config.eval.in_domain or data.validation_path or data.validation_fraction):
        yield Fault(
            "data.validation_fraction",
            "must be above 0, as eval.in_domain has no tasks, got 0",
            "raise it, or name a data.validation_path",
        )
    elif data.validation_path == data.path and split in (None, data.split):
        yield Fault(
            "data.validation_path",
            f"holds the rows that are trained on, got {data.path} for both",
            "set validation_split, or leave it out for a validation_fraction of the rows",
        )


def _metrics(config: SweepConfig) -> Iterator[Fault]:
    for field, metric, logged in unlogged_metrics(config):
        needed = missing_input(config, metric)
        remedy = f"it needs {needed}" if needed else did_you_mean(metric, logged, 0.5)
        yield Fault(field, f"nothing logs {metric}", remedy)


def _sampler(config: SweepConfig) -> Iterator[Fault]:
    if config.sampler != "grid":
        return
    for recipe in config.search.recipes:
        if isinstance(config.search.space(recipe).learning_rate, LogUniform):
            yield Fault(
                f"search.{recipe}.learning_rate",
                "a grid needs a list of values, got a range",
                "write [1e-4, 3e-4, 1e-3] or choose another sampler",
            )


def _objectives(config: SweepConfig) -> Iterator[Fault]:
    defined, before = defined_metrics(config), set[str]()
    for i, objective in enumerate(config.objectives):
        metric, mode = objective.metric, objective.mode
        known = defined.get(metric)
        if metric in before:
            rule = f"each objective must be another metric, got {metric} again"
            yield Fault(f"objectives.{i}.metric", rule)
        elif known and known.better not in ("none", mode):
            rule = f"{metric} is better the {_BETTER[known.better]}, got {mode}"
            yield Fault(f"objectives.{i}.mode", rule, f"write {known.better}")
        before.add(metric)


def _bounds(config: SweepConfig) -> Iterator[Fault]:
    """A share is at most 1: a bound of 5, meant in points, would hold whatever is forgotten."""
    defined = defined_metrics(config)
    for i, constraint in enumerate(config.constraints):
        metric, bound = constraint.metric, constraint.bound
        is_share = metric in defined and defined[metric].unit == "share"
        # A retention ratio may be any multiple of the base's skill above chance.
        if is_share and "ratio" not in metric.rpartition("/")[2] and abs(bound) > 1:
            yield Fault(
                f"constraints.{i}",
                f"{metric} is a share, of 1 at most, got {constraint}",
                f"write {bound / 100:g} for {bound:g} points",
            )


def _weights(config: SweepConfig) -> Iterator[Fault]:
    """The sum of weighted metrics is maximized: a wrong sign would end the best trials."""
    weights = config.early_stopping.metrics if config.early_stopping else None
    field, defined = "early_stopping.metrics", defined_metrics(config)
    for metric, weight in (weights or {}).items():
        known = defined.get(metric)
        if known and known.better == ("min" if weight > 0 else "max"):
            rule = f"{metric} is better the {_BETTER[known.better]}, got weight {weight:g}"
            yield Fault(field, rule, f"write {-weight:g}")


def _first_points(config: SweepConfig) -> Iterator[Fault]:
    points, trials = config.search.first, config.budget.trials
    yield from config.search.first_faults()
    if len(points) > trials:
        rule = f"must hold no more points than budget.trials = {trials}, got {len(points)}"
        yield Fault("search.first", rule, "raise it, or remove some")
