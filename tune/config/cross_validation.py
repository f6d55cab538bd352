"""What the sections of a sweep file must be to each other; each may be right by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainables import metric_keys
from trainables.config import Method
from trainables.errors import Fault, did_you_mean
from trainables.storage.locations import is_local
from trainables.workers.gpu_types import SMALLEST_SHARE
from tune.config.search_config import LogUniform
from tune.config.sweep_metrics import (
    defined_metrics,
    lacking,
    logged_metrics,
    may_be_logged,
    named_metrics,
)

if TYPE_CHECKING:
    from tune.config.sweep_config import SweepConfig

_BETTER = {"min": "lower it is", "max": "higher it is"}


class DoNotFit(ValueError):
    """Sections that do not fit together, with every fault found."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


def faults_between_sections(config: SweepConfig) -> list[Fault]:
    """Every way in which sections of a sweep file do not fit together."""
    checks = (
        _bits,
        _batches,
        _gpus,
        _data,
        _metrics,
        _sampler,
        _labels,
        _objectives,
        _bounds,
        _weights,
        _first_points,
    )
    return [fault for check in checks for fault in check(config)]


def _bits(config: SweepConfig) -> Iterator[Fault]:
    if config.model.load_in_4bit and config.search.full:
        yield Fault(
            "search.full",
            "must be null, as weights of 4 bits are not trained, got model.load_in_4bit: true",
            "search it in a sweep of its own, without load_in_4bit",
        )


def _batches(config: SweepConfig) -> Iterator[Fault]:
    for method in config.search.methods:
        field, sizes = config.batch_sizes(method)
        workers = config.resources.of(method).workers
        per_pass = config.train.micro_batch_size * workers
        for size in sizes:
            if size % per_pass:
                yield Fault(
                    field,
                    "must be a multiple of train.micro_batch_size x "
                    f"resources.{method}.workers = {per_pass}, got {size}",
                    _filled_by(size, config.train.micro_batch_size, workers),
                )


def _filled_by(size: int, micro_batch: int, workers: int) -> str:
    """The largest part of the micro-batch that fills a batch of this size, or one to take."""
    if size % workers:
        return f"raise it to {size + -size % (micro_batch * workers)}"
    return f"set train.micro_batch_size to {math.gcd(micro_batch, size // workers)}"


def _gpus(config: SweepConfig) -> Iterator[Fault]:
    for method in config.search.methods:
        yield from _gpu_type(config, method)
        yield from _gpu_share(config, method)


def _gpu_type(config: SweepConfig, method: Method) -> Iterator[Fault]:
    resources = config.resources.of(method)
    gpu_type = resources.accelerator_type
    if gpu_type is None:
        return
    if others := [other for other in config.search.methods if _takes_any_gpu(config, other)]:
        yield Fault(
            f"resources.{others[0]}.accelerator_type",
            f"must be given as resources.{method} has one, got none",
            f"else its trials may hold the {gpu_type} that there are",
        )
    if resources.gpus_per_worker == 0:
        yield Fault(
            f"resources.{method}.gpus_per_worker",
            f"must be above 0 on {gpu_type}, got 0",
            "leave accelerator_type out to train on CPUs",
        )


def _takes_any_gpu(config: SweepConfig, method: Method) -> bool:
    resources = config.resources.of(method)
    return resources.accelerator_type is None and resources.gpus_per_worker != 0


def _gpu_share(config: SweepConfig, method: Method) -> Iterator[Fault]:
    """A worker trains on one GPU, or on a share of one if it is its trial's only worker."""
    resources, field = config.resources.of(method), f"resources.{method}.gpus_per_worker"
    gpus = resources.gpus_per_worker
    if gpus is None or gpus in (0, 1):
        return
    if gpus > 1:
        remedy = f"set resources.{method}.workers for a trial on several"
        yield Fault(field, f"a worker trains on one GPU, got {gpus:g}", remedy)
    elif gpus < SMALLEST_SHARE:
        yield Fault(field, f"must be 0 or at least {SMALLEST_SHARE:g}, got {gpus:g}")
    elif resources.workers > 1:
        rule = f"workers of one trial cannot share a GPU, got {gpus:g}"
        yield Fault(field, rule, "set it to 1, or workers to 1")


def _data(config: SweepConfig) -> Iterator[Fault]:
    data, split = config.data, config.data.validation_split
    is_of_hub = data.validation_path is not None and not is_local(data.validation_path)
    if split is not None and not is_of_hub:
        yield Fault(
            "data.validation_split",
            f"is of a hub data set, and validation_path is none, got {split}",
            "name one there, or leave the split out",
        )
    elif not (config.eval.in_domain or data.validation_path or data.validation_fraction):
        yield Fault(
            "data.validation_fraction",
            "must be above 0, as eval.in_domain has no tasks, got 0",
            "raise it, or name a data.validation_path",
        )
    elif data.validation_path == data.path and split in (None, data.split):
        which = f"{data.path} (split {data.split})" if is_of_hub else data.path
        other_split = "set validation_split, or " if is_of_hub else ""
        yield Fault(
            "data.validation_path",
            f"holds the rows that are trained on, got {which} for both",
            f"{other_split}leave it out for a validation_fraction of the rows",
        )


def _metrics(config: SweepConfig) -> Iterator[Fault]:
    known = logged_metrics(config)
    for field, metric in named_metrics(config):
        if metric in known or may_be_logged(config, metric):
            continue
        needed = lacking(config, metric)
        # One without its role, as acc_mean, is of any that has it.
        of_roles = " or ".join(sorted(key for key in known if key.endswith(f"/{metric}")))
        near = f"did you mean {of_roles}?" if of_roles else did_you_mean(metric, known, 0.5)
        remedy = f"it needs {needed}" if needed else near
        yield Fault(field, f"nothing logs {metric}", remedy)


def _sampler(config: SweepConfig) -> Iterator[Fault]:
    methods = config.search.methods
    if config.sampler == "nsga2" and len(methods) > 1:
        # It crosses only what all trials share, which for two methods is the method alone.
        rule = f"nsga2 searches one method, got {' and '.join(methods)}"
        yield Fault("sampler", rule, "take tpe, or search one method")
    if config.sampler != "grid":
        return
    for method in methods:
        if isinstance(config.search.space(method).learning_rate, LogUniform):
            yield Fault(
                f"search.{method}.learning_rate",
                "a grid needs a list of values, got a range",
                "write [1e-4, 3e-4, 1e-3] or choose another sampler",
            )


def _labels(config: SweepConfig) -> Iterator[Fault]:
    for i, task in enumerate(config.eval.retention):
        key = metric_keys.task_forgetting(task.label)
        if key in metric_keys.METRICS:
            yield Fault(
                f"eval.retention.{i}.name",
                f"must not be {task.label}, whose forgetting would be logged as another metric, "
                f"{key}",
                "give the task another",
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
    """Reports tell shares in points, too, and a bound of 5 would hold whatever is forgotten."""
    defined = defined_metrics(config)
    # Of the base's skill above chance a trial may have any multiple.
    ratios = {metric_keys.task_retention_ratio(task.label) for task in config.eval.retention}
    unbounded = {metric_keys.RETENTION_RATIO, *ratios}
    for i, constraint in enumerate(config.constraints):
        metric, bound = constraint.metric, constraint.bound
        is_share = metric in defined and defined[metric].unit == "share"
        if is_share and metric not in unbounded and abs(bound) > 1:
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
        if weight == 0:
            yield Fault(field, f"must not weigh {metric} by 0, got 0", "leave it out")
        elif known and known.better == ("min" if weight > 0 else "max"):
            rule = f"{metric} is better the {_BETTER[known.better]}, got weight {weight:g}"
            yield Fault(field, rule, f"write {-weight:g}")


def _first_points(config: SweepConfig) -> Iterator[Fault]:
    points, trials = config.search.first, config.budget.trials
    yield from config.search.first_faults()
    if len(points) > trials:
        rule = f"must hold no more points than budget.trials = {trials}, got {len(points)}"
        yield Fault("search.first", rule, "raise it, or remove some")
