"""The base's evaluation, as the driver sees it: asked of a worker, and waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from trainables.config import Method
from trainables.errors import UserError
from trainables.ledger import SweepFolder
from trainables.storage import Location, parse_location
from trainables.under_ray.autoscaler import last_failure
from trainables.under_ray.tasks import as_task, evaluate_base_to
from tune.node_checks import marker_in, nodes_up
from tune.slots import HostPool, answering
from tune.sweep_config import SweepConfig

_TELL_EVERY_S = 30.0
_ROUNDING = 1e-6


def evaluate_base(
    config: SweepConfig,
    folder: SweepFolder,
    cache: Location,
    hosts: HostPool,
    of_worker: Callable[[Method], tuple[float, float]],
    tell: Callable[[str], None],
) -> None:
    """Have a worker evaluate the base, and leave what it found in the sweep's folder.

    Args:
        config: the sweep.
        folder: of the sweep.
        cache: where base evaluations are kept for all sweeps, if that is a folder.
        hosts: of slots; where the sweep has any the first of them is the worker.
        of_worker: CPUs and GPUs that a worker of a method holds.
        tell: takes what the user shall know meanwhile, line by line.

    Raises:
        UserError: the evaluation failed, or its node does not work in the sweep's folder.
    """
    target = folder.absolute(folder.base)
    tell(f"evaluating the base {config.model.name} ...")
    with answering("the base's evaluation"), marker_in(parse_location(target)) as marker:
        arguments = (
            config.model,
            config.data,
            config.eval,
            config.seed,
            str(cache.absolute()) if isinstance(cache, Path) else "",  # workers run elsewhere
            target,
            marker,
        )
        in_host = hosts.start()
        cpus, gpus = of_worker("lora" if in_host else config.search.methods[0])
        answer = (
            hosts.evaluate_base(*arguments)
            if in_host
            else as_task(evaluate_base_to, cpus, gpus).remote(*arguments)
        )
        fault = _awaited(answer, {"CPU": cpus, "GPU": gpus}, tell)
    if fault is not None:
        raise fault


def _awaited(
    answer: Any, wanted: dict[str, float], tell: Callable[[str], None]
) -> UserError | None:
    """The answer; tells over and over what it waits for where no node could give it."""
    while not ray.wait([answer], timeout=_TELL_EVERY_S)[0]:
        if not _has_node(wanted):
            failure = last_failure(ray.get_runtime_context().gcs_address)
            tell(f"waiting for a node with {_named(wanted)}{f': {failure}' if failure else ''}")
    fault: UserError | None = ray.get(answer)
    return fault


def _has_node(wanted: dict[str, float]) -> bool:
    """Whether a node is up that is large enough, if others leave it room."""
    return any(
        all(node.get(kind, 0.0) + _ROUNDING >= amount for kind, amount in wanted.items())
        for node in nodes_up()
    )


def _named(wanted: dict[str, float]) -> str:
    """Such as `8 CPUs and 1 GPU`."""
    amounts = [(kind, amount) for kind, amount in wanted.items() if amount]
    return " and ".join(f"{amount:g} {kind}{'s' * (amount > 1)}" for kind, amount in amounts)
