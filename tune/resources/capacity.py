"""What trials hold of a cluster, by kind of resource (see `gpu_types`), and whether it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from trainables.errors import Fault, UserError
from trainables.workers.gpu_types import gpu_kind, type_in_kind
from tune.config.sweep_config import SweepConfig

_ROUNDING = 1e-6  # 1 / 0.1 GPUs are 10 trials, though 1 // 0.1 is 9


def gpus_per_worker(config: SweepConfig, recipe: str, cluster: dict[str, float]) -> float:
    """GPUs that a worker of the recipe holds: as configured, else one if there are any."""
    resources = config.recipe_resources(recipe)
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return 1.0 if cluster.get("GPU", 0) >= 1 or resources.accelerator_type else 0.0


def held_by_worker(config: SweepConfig, recipe: str, cluster: dict[str, float]) -> dict[str, float]:
    """What a worker of the recipe holds of a cluster."""
    resources, gpus = config.recipe_resources(recipe), gpus_per_worker(config, recipe, cluster)
    held = {"GPU": gpus, "CPU": resources.cpus_per_worker}
    if resources.accelerator_type is not None:
        held[gpu_kind(resources.accelerator_type)] = gpus
    return held


def held_by_trial(config: SweepConfig, recipe: str, cluster: dict[str, float]) -> dict[str, float]:
    """What all workers of one trial of the recipe take up in total."""
    workers = config.recipe_resources(recipe).workers
    return {k: each * workers for k, each in taken_up(held_by_worker(config, recipe, cluster))}


def within_limit(config: SweepConfig, cluster: dict[str, float]) -> dict[str, float]:
    """The part of a cluster's resources that the sweep may hold."""
    limit = config.resources.max_gpus
    return cluster if limit is None else cluster | {"GPU": min(cluster.get("GPU", 0.0), limit)}


def check_resources(
    config: SweepConfig,
    cluster: dict[str, float],
    nodes: Sequence[Mapping[str, float]],
    startable: Sequence[Mapping[str, float]],
) -> None:
    """Check that one trial of each recipe fits the cluster, and each of its workers a node.

    Args:
        config: the sweep.
        cluster: resources of the whole cluster; the sweep may hold fewer.
        nodes: resources of each node that is up.
        startable: resources of a node of each type that the autoscaler may start.

    Raises:
        UserError: a recipe asks for more than there is, or GPU hours are budgeted without GPUs.
    """
    faults: list[Fault] = []
    limited = within_limit(config, cluster)
    held = [gpus_per_worker(config, recipe, limited) for recipe in config.search.recipes]
    if config.budget.gpu_hours is not None and not any(held):
        remedy = "set budget.hours or budget.trials"
        faults.append(Fault("budget.gpu_hours", "no trial of this sweep holds a GPU", remedy))
    for recipe in config.search.recipes:
        found = list(_total_faults(config, recipe, cluster))
        faults += found or _node_faults(config, recipe, limited, nodes, startable)
    if faults:
        raise UserError(faults)


def _total_faults(config: SweepConfig, recipe: str, cluster: dict[str, float]) -> Iterator[Fault]:
    """Kinds of which a trial's workers together need more than the sweep may hold."""
    workers, limit = config.recipe_resources(recipe).workers, config.resources.max_gpus
    limited, place = within_limit(config, cluster), config.resources_field(recipe)
    for kind, each in held_by_worker(config, recipe, limited).items():
        total, has = each * workers, cluster.get(kind, 0)
        if total <= limited.get(kind, 0):
            continue
        field = f"{place}.{kind.lower()}s_per_worker"
        rule = f"a trial asks for {total:g} {_name(kind)}s ({workers} x {each:g}), "
        rule += f"the cluster has {has:g}"
        lower = "lower it" if workers == 1 else f"lower it or {place}.workers"
        remedy = f"{lower}, or add nodes"
        if type_in_kind(kind):
            field = f"{place}.accelerator_type"
            types = ", ".join(filter(None, map(type_in_kind, sorted(cluster)))) or "none"
            remedy = f"ask for fewer, or for another type; the cluster's: {types}"
        elif kind == "GPU" and limit is not None and total > limit:
            rule += f", of which the sweep may hold {limit}" if limit < has else ""
            more = " and add nodes" if total > has else ""
            remedy = f"{lower}, or raise resources.max_gpus{more}"
        yield Fault(field, rule, remedy)


def _node_faults(
    config: SweepConfig,
    recipe: str,
    cluster: dict[str, float],
    nodes: Sequence[Mapping[str, float]],
    startable: Sequence[Mapping[str, float]],
) -> list[Fault]:
    """A worker is never split across nodes; a startable node type may be started for each."""
    workers = config.recipe_resources(recipe).workers
    worker = held_by_worker(config, recipe, cluster)
    if any(workers_in(worker, node) for node in startable):
        return []
    room = workers_on(worker, nodes)
    if room >= workers:
        return []
    shapes = Counter(amounts_text({k: node.get(k, 0.0) for k in worker}) for node in nodes)
    has = ", ".join(f"{count} of {shape}" for shape, count in shapes.items())
    asks = f"a trial asks for {workers} workers of {amounts_text(worker)} each"
    rule = f"{asks}, the nodes have room for {room} ({has})"
    remedy = "a worker stays within one node: lower what it asks for, or add nodes with more"
    return [Fault(config.resources_field(recipe), rule, remedy)]


def amounts_text(amounts: Mapping[str, float]) -> str:
    """Such as `1 GPU and 5 CPUs`, or `1 H100 GPU and 5 CPUs`."""
    has_types = any(map(type_in_kind, amounts))
    shown = {kind: amount for kind, amount in amounts.items() if kind != "GPU" or not has_types}
    return " and ".join(
        f"{amount:g} {_name(kind)}{'' if amount == 1 else 's'}" for kind, amount in shown.items()
    )


def _name(kind: str) -> str:
    return f"{type_in_kind(kind)} GPU" if type_in_kind(kind) else kind


def taken_up(worker: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """What a worker takes up of each kind: one that holds 0.6 GPUs takes up a whole one."""
    for kind, amount in worker.items():
        is_share = 0 < amount < 1 and (kind == "GPU" or type_in_kind(kind))
        yield kind, 1 / int(1 / amount + _ROUNDING) if is_share else amount


def workers_in(worker: Mapping[str, float], room: Mapping[str, float]) -> int:
    """How many such workers fit into `room`."""
    return min(
        int(room.get(kind, 0) / amount + _ROUNDING) for kind, amount in taken_up(worker) if amount
    )


def workers_on(worker: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many such workers fit on these nodes, each within one of them."""
    return sum(workers_in(worker, node) for node in nodes)


def max_concurrent(
    config: SweepConfig,
    cluster: dict[str, float],
    in_slots: int = 0,
    packed: Collection[str] = (),
) -> int:
    """Trials that fit in parallel, bounded by the configured number.

    Args:
        config: the sweep.
        cluster: resources of the cluster by kind, without those of slot hosts.
        in_slots: number of trials that train in slots; 0 if each trains by itself.
        packed: the recipes of those.
    """
    fits: dict[str | None, int] = {}  # by GPU type, as recipes compete for each type
    for recipe in config.search.recipes:
        if recipe not in packed:
            gpu_type = config.recipe_resources(recipe).accelerator_type
            own = workers_in(held_by_trial(config, recipe, cluster), cluster)
            fits[gpu_type] = max(fits.get(gpu_type, 1), own)
    most = in_slots + sum(fits.values())
    limit = config.resources.max_concurrent
    return min(most, limit) if limit else most
