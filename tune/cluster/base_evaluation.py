"""Has a worker evaluate or check the base, and waits for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from trainables.config import (
    BaseRequirements,
    DeepSpeedConfig,
    TrainConfig,
)
from trainables.errors import UserError
from trainables.methods import Method
from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord
from trainables.storage.storage import Location, parse_location
from trainables.workers.ray_tasks import as_task, check_base_on_worker, evaluate_base_on_worker
from tune.cluster.node_checks import marker_in
from tune.cluster.slot_hosts import HostPool
from tune.cluster.waiting import answering, awaited
from tune.config.method_settings import all_settings, smallest_method
from tune.config.search_config import SearchConfig
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import held_by_worker
from tune.search.trial_ids import largest_trial

_LONG_S = 600.0


def have_base_evaluated(
    config: SweepConfig,
    ledger: Ledger,
    cache: Location,
    hosts: HostPool,
    cluster: dict[str, float],
    tell: Callable[[str], None],
) -> None:
    """Have a worker, the first slot host if there are any, evaluate the base for the sweep.

    `cache` has the evaluations of all sweeps, and is used only if it is a folder. `tell` is called
    with each line of progress.

    Raises:
        UserError: the evaluation failed, or its node does not work in the sweep's folder.
    """
    target = ledger.folder.absolute(ledger.folder.base)
    tell(f"evaluating the base {config.model.name} ...")
    with answering("the base's evaluation"), marker_in(parse_location(target)) as marker:
        arguments = (
            config.model,
            config.most_replayed,
            config.eval,
            config.seed,
            str(cache.absolute()) if isinstance(cache, Path) else "",  # workers run elsewhere
            target,
            marker,
            _base_requirements(config.search, config.train, config.deepspeed),
        )
        fault: UserError | None
        if hosts.start():
            fault = hosts.evaluate_base(*arguments)
        else:
            held = held_by_worker(config, config.search.recipes[0], cluster)
            answer = as_task(evaluate_base_on_worker, held).remote(*arguments)
            fault = awaited(answer, held, tell)
    if fault is not None:
        raise fault
    if line := evaluation_time_line(config, ledger.base()):
        tell(line)


def have_base_checked(
    config: SweepConfig, ledger: Ledger, cluster: dict[str, float], tell: Callable[[str], None]
) -> None:
    """Have a worker check that the base meets requirements which the last start did not have.

    Raises:
        UserError: it does not, or cannot be loaded.
    """
    requirements = _base_requirements(config.search, config.train, config.deepspeed)
    last = ledger.sweep().config
    with suppress(ValidationError, KeyError):  # of another version's file
        search = SearchConfig.model_validate(last["search"])
        train = TrainConfig.model_validate(last["train"])
        deepspeed = DeepSpeedConfig.model_validate(last["deepspeed"])
        if requirements.are_met_by(_base_requirements(search, train, deepspeed)):
            return
    model = ledger.base().pinned(config.model)
    tell(f"checking the base {model.name} for what the sweep file newly asks for ...")
    held = held_by_worker(config, config.search.recipes[0], cluster)
    with answering("the base's check"):
        answer = as_task(check_base_on_worker, held).remote(model, requirements)
        fault: UserError | None = awaited(answer, held, tell)
    if fault is not None:
        raise fault


def _base_requirements(
    search: SearchConfig, train: TrainConfig, deepspeed: DeepSpeedConfig | None = None
) -> BaseRequirements:
    recipes: dict[Method, str] = {}  # by adapter, of which each is tried once
    for recipe in search.recipes:
        if not search.method(recipe).changes_base:
            for settings in all_settings(search.space(recipe)):
                adapter = smallest_method(search.space(recipe), settings).smallest
                recipes.setdefault(adapter, recipe)
    changes_base = any(search.method(recipe).changes_base for recipe in search.recipes)
    return BaseRequirements(
        adapters=tuple((recipe, adapter) for adapter, recipe in recipes.items()),
        recomputes=train.gradient_checkpointing,
        deepspeed=deepspeed.config if deepspeed and changes_base else None,
    )


def evaluation_time_line(config: SweepConfig, base: BaseRecord) -> str | None:
    """A line on how long a trial's evaluations will take; None if that is not long.

    One process evaluated the base; a trial's workers share the work.
    """
    took = []
    for recipe in config.search.recipes:
        trial = largest_trial(config, recipe)
        count = trial.train.evaluations(base.train_samples)
        took.append((count * base.seconds / trial.workers, count, recipe))
    seconds, count, recipe = max(took)
    if seconds <= _LONG_S:
        return None
    return (
        f"the {count} evaluations of a {recipe} trial will take up to about {seconds / 60:.0f} "
        "minutes, as the base's did; eval.limit, in a sweep of another name, or a larger "
        "train.report_every lowers that"
    )
