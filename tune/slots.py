"""Slots for LoRA trials: how many hosts the cluster bears, and how many slots each has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from trainables.config import TrialConfig
from trainables.slots.eligibility import reason_against
from trainables.slots.speed import best
from trainables.under_ray.slots import SlotHosts, start_slot_host
from tune.preflight import gpus_per_worker, trials_that_fit
from tune.search_space import largest_lora
from tune.searcher import MakeTrial
from tune.sweep_config import SweepConfig

_LOG = logging.getLogger(__name__)


@contextmanager
def slot_hosts(
    config: SweepConfig,
    cluster: dict[str, float],
    make_trial: MakeTrial,
) -> Iterator[SlotHosts | None]:
    """Hosts for the time of a sweep; None where its LoRA trials train one by one.

    Raises:
        UserError: the model cannot be loaded.
    """
    wanted = config.resources.lora.slots
    if "lora" not in config.search.methods or wanted == 0:
        yield None
        return
    trial = make_trial(0, largest_lora(config.search), 1, config.seed)
    count = hosts_that_fit(config, cluster)
    if reason := _reason_against_all(config, trial, count):
        _say(reason)
        yield None
        return
    gpus = gpus_per_worker(config, "lora", cluster)
    cpus = config.resources.lora.cpus_per_worker
    actors = tuple(start_slot_host(cpus, gpus) for _ in range(count))
    try:
        if reason := ray.get(actors[0].reason_against.remote(trial.model_dump(mode="json"))):
            _say(reason)
            for actor in actors:
                ray.kill(actor)
            actors = ()
            yield None
            return
        yield SlotHosts(actors, wanted if wanted != "auto" else _measured(config, trial, actors))
    finally:
        for actor in actors:
            ray.kill(actor)


def _reason_against_all(config: SweepConfig, trial: TrialConfig, hosts: int) -> str | None:
    """Why some LoRA point of the search could not have a slot; None where all can."""
    space = config.search.lora
    assert space is not None  # noqa: S101 - the caller has looked
    if hosts == 0:
        return "beside a full fine-tuning trial the cluster has no room for a host of slots"
    if len(space.target_modules) > 1:
        return "search.lora.target_modules differ, and slots of one base adapt the same layers"
    if True in space.dora:
        return "search.lora.dora is among the choices, and DoRA's norms are not batched"
    return reason_against(trial)


def hosts_that_fit(config: SweepConfig, cluster: dict[str, float]) -> int:
    """Hosts side by side, with room for a full fine-tuning trial where the sweep has such."""
    fits = trials_that_fit(config, "lora", cluster)
    if "full" in config.search.methods:
        rest = dict(cluster)
        full = config.resources.full
        rest["CPU"] = rest.get("CPU", 0) - full.workers * full.cpus_per_worker
        rest["GPU"] = rest.get("GPU", 0) - full.workers * gpus_per_worker(config, "full", cluster)
        fits = trials_that_fit(config, "lora", rest)
    most = min(config.budget.trials, config.resources.max_concurrent or config.budget.trials)
    return max(0, min(fits, most))


def beside_hosts(config: SweepConfig, cluster: dict[str, float], hosts: int) -> dict[str, float]:
    """What hosts of slots leave of a cluster for trials that train by themselves."""
    held = {
        "CPU": config.resources.lora.cpus_per_worker,
        "GPU": gpus_per_worker(config, "lora", cluster),
    }
    return cluster | {kind: cluster.get(kind, 0.0) - hosts * held[kind] for kind in held}


def _measured(config: SweepConfig, trial: TrialConfig, actors: tuple[Any, ...]) -> int:
    """The number of slots that trains fastest, measured on one host."""
    trials = min(config.budget.trials, config.resources.max_concurrent or config.budget.trials)
    most = max(1, trials // len(actors))
    speeds = ray.get(actors[0].probe.remote(trial.model_dump(mode="json"), most))
    slots = best(speeds)
    measured = ", ".join(f"{s.slots}: {s.passes_per_second:.1f}/s" for s in speeds)
    _LOG.info("%d hosts of %d slots (passes by slots: %s)", len(actors), slots, measured)
    return slots


def _say(reason: str) -> None:
    _LOG.warning("LoRA trials train one by one: %s", reason)
