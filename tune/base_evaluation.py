"""The base's evaluation, as the driver sees it: asked of a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ray

from trainables.config import Method
from trainables.errors import UserError
from trainables.ledger import SweepFolder
from trainables.storage import Location, parse_location
from trainables.under_ray.tasks import as_task, evaluate_base_to
from tune.node_checks import marker_in
from tune.slots import HostPool, answering
from tune.sweep_config import SweepConfig


def evaluate_base(
    config: SweepConfig,
    folder: SweepFolder,
    cache: Location,
    hosts: HostPool,
    of_worker: Callable[[Method], tuple[float, float]],
) -> None:
    """Have a worker evaluate the base, and leave what it found in the sweep's folder.

    Args:
        config: the sweep.
        folder: of the sweep.
        cache: where base evaluations are kept for all sweeps, if that is a folder.
        hosts: of slots; where the sweep has any the first of them is the worker.
        of_worker: CPUs and GPUs that a worker of a method holds.

    Raises:
        UserError: the evaluation failed, or its node does not work in the sweep's folder.
    """
    target = folder.absolute(folder.base)
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
        fault: UserError | None = ray.get(answer)
    if fault is not None:
        raise fault
