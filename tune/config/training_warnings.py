"""Warnings about sweeps that are valid, but hardly what the user wants."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.results.formatting import how_many
from analysis.results.sample_size import (
    FEWEST_CAPACITIES,
    FEWEST_OF_CAPACITY,
    NEGLIGIBLE,
    items_needed,
    level_of_capacity,
)
from trainables.config import Frozen
from trainables.metric_keys import VALIDATION_LOSS
from trainables.records.schema import BaseRecord
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_errors import shown
from tune.config.sweep_metrics import named_metrics

_FEWEST_HELD_OUT = 30


def training_warnings(config: SweepConfig, samples: int | None) -> Iterator[str]:
    """Keys without effect, and batches larger than the data.

    `samples`: how many there are to train on, if that is known.
    """
    train, data, deepspeed = config.train, config.data, config.deepspeed
    search = config.search
    spaces = map(search.space, search.recipes)
    if train.steps is not None and any(space.epochs is None for space in spaces):
        yield from _replaced(train, "train.epochs", "train.steps")
    if data.validation_path and data.validation_fraction:
        yield from _replaced(data, "data.validation_fraction", "data.validation_path")
    if deepspeed.config is not None and any(search.method(r).changes_base for r in search.recipes):
        for key in ("zero_stage", "offload_optimizer", "offload_parameters"):
            yield from _replaced(deepspeed, f"deepspeed.{key}", "deepspeed.config")
    for field, sizes in dict(map(config.batch_sizes, search.recipes)).items():
        if samples is not None and (larger := [str(size) for size in sizes if size > samples]):
            yield (
                f"{field} is {' and '.join(larger)}, and there is no more to train on than "
                f"{how_many(samples, 'sample')}: each optimizer step takes some more than once; "
                f"set it to {samples} or less"
            )


def _replaced(section: Frozen, field: str, by: str) -> Iterator[str]:
    """No fault, as an extended file or `--set` may give one of both."""
    key = field.rpartition(".")[2]
    if key in section.model_fields_set:
        value = shown(getattr(section, key))
        yield f"{field} is {value}, which has no effect beside {by}: leave one of them out"


def held_out_warnings(config: SweepConfig, base: BaseRecord) -> Iterator[str]:
    """A validation loss that trials are judged by, on so few samples that chance decides."""
    fields = [field for field, metric in named_metrics(config) if metric == VALIDATION_LOSS]
    if fields and base.validation_samples < _FEWEST_HELD_OUT:
        raised = "" if config.data.validation_path else "raise data.validation_fraction, or "
        yield (
            f"{', '.join(fields)}: {VALIDATION_LOSS} is measured on only "
            f"{how_many(base.validation_samples, 'held-out sample')}, so differences between "
            f"trials may be chance; {raised}name a data.validation_path of {_FEWEST_HELD_OUT} or "
            "more"
        )


def item_warnings(config: SweepConfig, base: BaseRecord, trials: int) -> Iterator[str]:
    """Fewer in-domain items than can show that a capacity suffices, if there are enough trials.

    `trials`: how many the search has.
    """
    search = config.search
    sizes = [score.items for score in base.scores.values() if score.role == "in_domain"]
    for recipe in search.recipes if sizes else ():
        name, choices = search.space(recipe).capacities
        own_trials = trials // len(search.recipes)
        if len(choices) < FEWEST_CAPACITIES or own_trials < len(choices) * FEWEST_OF_CAPACITY:
            continue
        level = level_of_capacity(len(choices), FEWEST_OF_CAPACITY)
        needed = items_needed(sizes, [1 / len(sizes)] * len(sizes), level=level)
        if sum(sizes) < needed:
            yield (
                f"eval.in_domain has {how_many(sum(sizes), 'item')}, too few to show to within "
                f"{100 * NEGLIGIBLE:g} points that a {name} of {recipe} suffices: at least "
                f"{needed:,} are needed, even if they do not differ; raise its limit, or add items"
            )
