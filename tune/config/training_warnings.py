"""Warnings of trainings and data that are allowed, but hardly what the user wants."""

from __future__ import annotations

import math
from collections.abc import Iterator

from analysis.results.formatting import how_many
from analysis.results.sample_size import (
    FEWEST_OF_RANK,
    FEWEST_RANKS,
    NEGLIGIBLE,
    items_needed,
    level_of_rank,
)
from trainables.config import Frozen, Method, TrainConfig
from trainables.config.train_config import step_at
from trainables.metric_keys import TRAIN_LOSS, VALIDATION_LOSS
from trainables.records.schema import BaseRecord
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_errors import shown
from tune.config.sweep_metrics import named_metrics

_FEWEST_HELD_OUT = 30
_LARGEST_SHARE_HELD_OUT = 0.5  # more is better trained on


def training_warnings(config: SweepConfig, samples: int | None) -> Iterator[str]:
    """What trainings of so many samples, if known, would not do as their sweep file may want it."""
    yield from _of_replaced(config)
    yield from _of_chat_template(config)
    if samples is not None:
        yield from _of_batches(config, samples)
        yield from _of_early_stopping(config, samples)


def _of_replaced(config: SweepConfig) -> Iterator[str]:
    """Keys that others replace: no fault, as another file or `--set` may give one of both."""
    train, data, deepspeed = config.train, config.data, config.deepspeed
    spaces = map(config.search.space, config.search.methods)
    if train.steps is not None and any(space.epochs is None for space in spaces):
        yield from _given(train, "train.epochs", "train.steps")
    if data.validation_path and data.validation_fraction:
        yield from _given(data, "data.validation_fraction", "data.validation_path")
    if deepspeed.config is not None and config.search.full:
        for key in ("zero_stage", "offload_optimizer", "offload_parameters"):
            yield from _given(deepspeed, f"deepspeed.{key}", "deepspeed.config")


def _given(section: Frozen, field: str, replaced_by: str) -> Iterator[str]:
    key = field.rpartition(".")[2]
    if key in section.model_fields_set:
        value = shown(getattr(section, key))
        yield f"{field} is {value}, which has no effect beside {replaced_by}: leave one of them out"


def _of_chat_template(config: SweepConfig) -> Iterator[str]:
    """Variables that no chat template gets: no fault, as sweeps were started with them."""
    given = config.model.chat_template_args
    if given and not (config.data.has_chats or config.eval.chat_template):
        fields = "eval.chat_template"
        if config.data.text is None:  # which takes no chats
            fields = f"data.chat_template and {fields}"
        yield (
            f"model.chat_template_args is {shown(given)}, which has no effect, as neither data nor "
            f"tasks take the chat template: set {fields} to true, or leave it out"
        )


def _of_batches(config: SweepConfig, samples: int) -> Iterator[str]:
    """Batches of more samples than there are, whose steps train on some more than once."""
    for field, sizes in dict(map(config.batch_sizes, config.search.methods)).items():
        if larger := [str(size) for size in sizes if size > samples]:
            yield (
                f"{field} is {' and '.join(larger)}, and there is no more to train on than "
                f"{how_many(samples, 'sample')}: each optimizer step takes some more than once; "
                f"set it to {samples} or less"
            )


def _of_early_stopping(config: SweepConfig, samples: int) -> Iterator[str]:
    """Trials that are evaluated too late for any to be stopped; their losses are known always."""
    stopping, train = config.early_stopping, config.train
    if stopping is None:
        return
    names = stopping.metrics or [objective.metric for objective in config.objectives]
    if set(names) == {TRAIN_LOSS}:
        return
    for method in config.search.methods:
        longest = max(own.total_steps(samples) for own in _lengths(config, method))
        last = max(train.report_steps(longest) - {longest}, default=0)
        if last < step_at(stopping.first_rung, longest):
            yield (
                f"train.report_every is {train.report_every:g}, and {method} trials have at most "
                f"{how_many(longest, 'step')}: early_stopping ends none, as no evaluation comes "
                "between its first_rung and the end; lower one of them, such as report_every to "
                "0.25 for a quarter of the training"
            )


def held_out_warnings(config: SweepConfig, base: BaseRecord) -> Iterator[str]:
    """A validation loss that trials are judged by, of so few samples that chance decides."""
    held_out = base.validation_samples
    fields = [field for field, metric in named_metrics(config) if metric == VALIDATION_LOSS]
    if not fields or held_out >= _FEWEST_HELD_OUT:
        return
    remedy = f"name a data.validation_path of {_FEWEST_HELD_OUT} or more"
    longer = base.skipped_validation_samples
    if held_out + longer >= _FEWEST_HELD_OUT:
        remedy = f"raise data.max_length, which {longer} more are longer than"
    elif config.data.validation_path is None:
        replay = config.data.replay  # of other rows than those that are split
        own = base.train_samples * (1 - replay.share if replay else 1)
        share = _FEWEST_HELD_OUT / (own + held_out)
        raised = min(math.ceil(100 * share) / 100, _LARGEST_SHARE_HELD_OUT)
        if raised > config.data.validation_fraction:
            remedy = f"set data.validation_fraction to {raised:g}, or {remedy}"
    yield (
        f"{', '.join(fields)}: {VALIDATION_LOSS} is of no more than "
        f"{how_many(held_out, 'held-out sample')}: what tells trials apart may be chance; {remedy}"
    )


def item_warnings(config: SweepConfig, base: BaseRecord, trials: int) -> Iterator[str]:
    """Fewer in-domain items than can show that a rank suffices, of ranks that are tried enough.

    More may be needed than is told: where ranks have more trials than the fewest, members of a
    group weigh more than their items are, or tasks ask the same questions.

    `trials`: how many the search has.
    """
    ranks = len(config.search.lora.rank) if config.search.lora else 0
    sizes = [score.items for score in base.scores.values() if score.role == "in_domain"]
    of_lora = trials // len(config.search.methods)
    if ranks < FEWEST_RANKS or of_lora < ranks * FEWEST_OF_RANK or not sizes:
        return
    level = level_of_rank(ranks, FEWEST_OF_RANK)
    needed = items_needed(sizes, [1 / len(sizes)] * len(sizes), level=level)
    if sum(sizes) < needed:
        yield (
            f"eval.in_domain has {how_many(sum(sizes), 'item')}, too few to show to within "
            f"{100 * NEGLIGIBLE:g} points that a rank suffices: at least {needed:,} are needed, "
            "even if ranks differ in none; raise its limit, or add items"
        )


def _lengths(config: SweepConfig, method: Method) -> Iterator[TrainConfig]:
    """The trainings of a method that differ in their number of steps."""
    searched, (_, sizes) = config.search.space(method).epochs, config.batch_sizes(method)
    for size in sizes:
        sized = config.train.model_copy(update={"batch_size": size})
        if searched is None:
            yield sized
        for epochs in searched or ():  # a searched length replaces the fixed one
            yield sized.model_copy(update={"epochs": epochs, "steps": None})
