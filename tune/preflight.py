"""Checks before anything runs: those that need no model, and those that need the cluster."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainables.config import Method
from trainables.data import SOURCES, check_templates, load_rows, read_general_text
from trainables.errors import Fault, UserError
from trainables.locations import is_local, resolve
from trainables.metric_keys import METRICS
from trainables.records import BaseRecord
from trainables.storage import Location
from tune.sweep_config import EVALUATED, SweepConfig

_RELATIVE = (
    "paths are relative to the sweep file's folder; with ${...} or --set, to where the command runs"
)
_ROUNDING = 1e-6  # 1 / 0.1 GPUs are 10 trials, though 1 // 0.1 is 9


def check_files(config: SweepConfig, output_dir: Location) -> int | None:
    """Read the local files a sweep names; returns the number of training rows, if local.

    Raises:
        UserError: everything missing or malformed.
    """
    faults: list[Fault] = []
    rows: int | None = None
    for source in SOURCES:
        path = getattr(config.data, source)
        if path is None or not is_local(path):
            continue
        try:
            found = load_rows(config.data, source)
        except UserError as error:
            faults += error.faults
            continue
        faults += check_templates(config.data, found, source)
        if source == "path":
            rows = len(found)
    missing = _missing_paths(config)
    faults += missing or _unreadable_text(config)
    faults += _deepspeed_faults(config)
    if config.inspect and isinstance(output_dir, str):
        rule = f"needs the sweep in a folder, got {output_dir}"
        remedy = "leave it out; copy the sweep to a folder afterwards: `python -m analysis inside`"
        faults.append(Fault("inspect", rule, remedy))
    if faults:
        raise UserError(faults)
    return rows


def _missing_paths(config: SweepConfig) -> list[Fault]:
    wanted = [("eval.task_dirs", folder) for folder in config.eval.task_dirs]
    if config.eval.general_text:
        wanted.append(("eval.general_text", config.eval.general_text))
    if is_local(config.model.name):
        wanted.append(("model.name", config.model.name))
    for role, task in config.eval.tasks():
        wanted += [(f"eval.{role}", file) for file in (task.data_files or {}).values()]
    faults = []
    for field, location in wanted:
        try:
            path = Path(resolve(location)).expanduser()
        except ModuleNotFoundError as error:
            faults.append(Fault(field, str(error)))
            continue
        if not path.exists():
            faults.append(Fault(field, f"no such file or folder: {path}", _RELATIVE))
    return faults


def _unreadable_text(config: SweepConfig) -> list[Fault]:
    if config.eval.general_text is None:
        return []
    try:
        read_general_text(config.eval.general_text)
    except UserError as error:
        return error.faults
    return []


def _deepspeed_faults(config: SweepConfig) -> list[Fault]:
    file = config.deepspeed.config_file
    if file is None:
        return []
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        return [Fault("deepspeed.config_file", f"cannot be read: {error}")]
    if not isinstance(settings, dict):
        return [Fault("deepspeed.config_file", f"must hold a JSON object: {file}")]
    if "scheduler" in settings:  # DeepSpeed's would run in place of the one that LoRA trials have
        rule = f"must hold no scheduler, so that all methods have the same one: {file}"
        remedy = "leave it out; set train.schedule and train.warmup"
        return [Fault("deepspeed.config_file", rule, remedy)]
    return []


def gpus_per_worker(config: SweepConfig, method: Method, cluster: dict[str, float]) -> float:
    """GPUs a worker of the method holds: as configured, else one where there are any."""
    configured = config.resources.of(method).gpus_per_worker
    if configured is not None:
        return configured
    return 1.0 if cluster.get("GPU", 0) >= 1 else 0.0


def within_limit(config: SweepConfig, cluster: dict[str, float]) -> dict[str, float]:
    """The part of a cluster's resources that the sweep may hold."""
    limit = config.resources.max_gpus
    return cluster if limit is None else cluster | {"GPU": min(cluster.get("GPU", 0.0), limit)}


def check_resources(
    config: SweepConfig,
    cluster: dict[str, float],
    nodes: Sequence[Mapping[str, float]],
    startable: Sequence[Mapping[str, float]] = (),
) -> None:
    """See whether one trial of each method fits the cluster, and each of its workers a node.

    Args:
        config: the sweep.
        cluster: the resources that it may hold, by kind.
        nodes: those of each node that is up.
        startable: those of a node of each type that the autoscaler may start.

    Raises:
        UserError: a method asks for more than there is.
    """
    faults: list[Fault] = []
    for method in config.search.methods:
        found = list(_faults_of_sums(config, method, cluster))
        faults += found or _faults_of_nodes(config, method, cluster, nodes, startable)
    if faults:
        raise UserError(faults)


def _faults_of_sums(
    config: SweepConfig, method: Method, cluster: dict[str, float]
) -> Iterator[Fault]:
    resources, limit = config.resources.of(method), config.resources.max_gpus
    for kind, each in _of_worker(config, method, cluster).items():
        total, available = each * resources.workers, cluster.get(kind, 0)
        if total <= available:
            continue
        asks = f"a trial asks for {total:g} {kind}s ({resources.workers} x {each:g})"
        if kind == "GPU" and available == limit:
            rule, remedy = f"{asks}, the sweep may hold {limit}", "raise resources.max_gpus"
        else:
            rule, remedy = f"{asks}, the cluster has {available:g}", "lower it or add nodes"
        yield Fault(f"resources.{method}.{kind.lower()}s_per_worker", rule, remedy)


def _faults_of_nodes(
    config: SweepConfig,
    method: Method,
    cluster: dict[str, float],
    nodes: Sequence[Mapping[str, float]],
    startable: Sequence[Mapping[str, float]],
) -> list[Fault]:
    """A worker is never divided among nodes: a trial that only fits their sum would wait forever.

    Of the nodes that an autoscaler may start there is no count by type that would hold, as all
    types share one bound: one that has room for a worker counts for all of them.
    """
    worker, workers = _of_worker(config, method, cluster), config.resources.of(method).workers
    if any(workers_in(worker, node) for node in startable):
        return []
    room = sum(workers_in(worker, node) for node in nodes)
    if room >= workers:
        return []
    shapes = Counter(_wording({kind: node.get(kind, 0.0) for kind in worker}) for node in nodes)
    has = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
    asks = f"a trial asks for {workers} workers of {_wording(worker)} each"
    rule = f"{asks}, the nodes have room for {room} ({has})"
    remedy = "a worker stays within one node: lower what it asks for, or add nodes with more"
    return [Fault(f"resources.{method}", rule, remedy)]


def _of_worker(config: SweepConfig, method: Method, cluster: dict[str, float]) -> dict[str, float]:
    return {
        "GPU": gpus_per_worker(config, method, cluster),
        "CPU": config.resources.of(method).cpus_per_worker,
    }


def _wording(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}s" for kind, amount in amounts.items())


def workers_in(worker: Mapping[str, float], room: Mapping[str, float]) -> int:
    """How many workers have room in it."""
    return min(
        int(room.get(kind, 0) / amount + _ROUNDING) for kind, amount in worker.items() if amount
    )


def trials_that_fit(config: SweepConfig, method: Method, cluster: dict[str, float]) -> int:
    """Trials of one method side by side."""
    worker, workers = _of_worker(config, method, cluster), config.resources.of(method).workers
    return workers_in({kind: amount * workers for kind, amount in worker.items()}, cluster)


def max_concurrent(config: SweepConfig, cluster: dict[str, float], in_slots: int = 0) -> int:
    """Trials that fit side by side, bounded by the configured number.

    Args:
        config: the sweep.
        cluster: its resources by kind.
        in_slots: LoRA trials that train in slots; 0 where they train one by one.
    """
    fits = [
        trials_that_fit(config, method, cluster)
        for method in config.search.methods
        if not (in_slots and method == "lora")
    ]
    # Full fine-tuning has what the hosts of slots leave: room for one.
    most = in_slots + len(fits) if in_slots else max(1, max(fits))
    limit = config.resources.max_concurrent
    return min(most, limit) if limit else most


def check_metrics(config: SweepConfig, base: BaseRecord) -> None:
    """See whether all metrics that the sweep file names are logged.

    The base's evaluation shows which scores the tasks give.

    Raises:
        UserError: a metric that nothing logs.
    """
    of_training = set(METRICS) & config.logged_metrics() - set(EVALUATED)
    known = of_training | set(base.metrics)
    faults = [
        Fault(field, f"nothing logs {metric}", f"known: {', '.join(sorted(known))}")
        for field, metric in config.named_metrics()
        if metric not in known
    ]
    if faults:
        raise UserError(faults)
