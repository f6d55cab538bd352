"""Shows what a sweep would run (`--dry-run`), without a GPU or a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import yaml
from rich.console import Console

from analysis.results.confirmation import planned_repeats
from analysis.results.formatting import how_many, setting
from trainables.config import TrialConfig
from trainables.records.schema import TrialRecord
from trainables.storage.storage import Location
from tune.cluster.memory_fit import disk_space, memory_table
from tune.cluster.packed_recipes import packed_recipes
from tune.config.sweep_config import SweepConfig
from tune.config.training_warnings import training_warnings
from tune.search.earlier_trials import EarlierTrials, preview_earlier_trials
from tune.search.searcher import OptunaSearcher
from tune.search.space import grid_size, planned_trials
from tune.search.trial_ids import TrialMaker, largest_trial

_POINTS_SHOWN = 8


@dataclass(frozen=True)
class _Runs:
    """The trials that a start of the command would run.

    Attributes:
        points: the first of them.
        ended: how many trials of the sweep count as they are.
        to_search: how many trials the search would run.
        others: how many repeats would follow; the most there may be while the search goes on, as it
            may find other winners.
    """

    points: list[TrialRecord]
    ended: int
    to_search: int
    others: int

    @property
    def count(self) -> int:
        """How many there are."""
        return self.to_search + self.others

    def in_words(self) -> str:
        """Such as `10 trials have ended, 2 to run`."""
        ended = f"{self.ended} trial{'s have' if self.ended > 1 else ' has'} ended"
        if not self.count:
            return f"{ended}, none is to run"
        if self.to_search and self.others:
            return f"{ended}, {self.to_search} to run, then up to {self.others} repeats of winners"
        return f"{ended}, {self.count} to run"


def print_plan(
    config: SweepConfig, samples: int | None, output_dir: Location, retry_failed: bool
) -> None:
    """Print the resolved configuration, the first points, resources and an estimate.

    Args:
        config: the sweep.
        samples: number of samples that the data make; None if it is not known yet.
        output_dir: searched for an earlier run of the sweep, whose trials are not run again.
        retry_failed: whether those that failed are.

    Raises:
        UserError: the sweep cannot go on from that run, or start from those of `warm_start`.
    """
    earlier = preview_earlier_trials(config, output_dir)
    settings = config.model_dump(mode="json")
    plan = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()
    runs = _runs(config, earlier, retry_failed)
    lines = [*disk_space(config), *_resources(config)]
    if runs.points:
        lines.append(_estimate(config, runs, samples))
    lines += [f"warning: {warning}" for warning in training_warnings(config, samples)]
    console = Console()
    for part in [plan, *_points(config, runs), memory_table(config), *earlier.messages(), *lines]:
        console.print(part, markup=False, soft_wrap=isinstance(part, str), highlight=False)


def _runs(config: SweepConfig, earlier: EarlierTrials, retry_failed: bool) -> _Runs:
    ended = earlier.ended(retry_failed)
    searcher = OptunaSearcher(
        config,
        TrialMaker.for_estimates(config),
        ended,
        earlier.to_go_on(retry_failed),
        earlier.warm,
    )
    suggestions = _suggest(searcher)
    points = list(islice(suggestions, _POINTS_SHOWN))
    planned = planned_trials(config)
    to_search = planned - sum(record.confirms is None for record in ended)
    # Where the budget is spent, trials that were interrupted still go on, and no others start.
    if points and to_search > 0 and not searcher.cut_short_by:
        repeats = planned_repeats(config.confirm, planned, len(config.search.recipes))
        return _Runs(points, len(ended), to_search, repeats)
    return _Runs(points, len(ended), 0, len(points) + sum(1 for _ in suggestions))


def _suggest(searcher: OptunaSearcher) -> Iterator[TrialRecord]:
    """Trials that the search would suggest before any further result is in."""
    while isinstance(suggestion := searcher.suggest(""), dict):
        config = TrialConfig.model_validate(suggestion["trial"])
        yield TrialRecord(config=config, params=suggestion["params"], started=0)


def _points(config: SweepConfig, runs: _Runs) -> list[str]:
    """A title and the first trials, each as the sweep itself shows it."""
    if not runs.points:
        return [runs.in_words()]
    announced = runs.to_search or runs.count  # none is searched where the budget is spent
    shown = len(runs.points)
    title = how_many(announced, "trial")
    points = grid_size(config.search) if config.sampler == "grid" else None
    if points and points > planned_trials(config):
        title += f", of the grid's {points} points"
    if runs.ended:
        title = f"{runs.in_words()}{f'; the first {shown}' if shown < runs.count else ''}"
    elif shown < announced:
        title = f"first {shown} of {title}"
    return [f"{title}:", *(f"  trial {point.number}: {setting(point)}" for point in runs.points)]


def _resources(config: SweepConfig) -> list[str]:
    lines = []
    for recipe in config.search.recipes:
        resources = config.recipe_resources(recipe)
        gpus = resources.gpus_per_worker
        each = f"{gpus or 0:g} GPU"
        if resources.accelerator_type:
            each = f"{gpus or 1:g} {resources.accelerator_type} GPU"
        elif gpus is None and config.resources.max_gpus != 0:
            each = "1 GPU where there is one"
        lines.append(
            f"{recipe}: {resources.workers} worker(s) a trial, each with "
            f"{resources.cpus_per_worker:g} CPU and {each}"
        )
    return [*lines, *_packing(config), *_strengths(config), *_repairs(config)]


def _strengths(config: SweepConfig) -> Iterator[str]:
    """What is evaluated beside each trained model, and where nothing can be."""
    if config.rewind is None or not config.rewind.strengths:
        return
    shown = ", ".join(f"{strength:g}" for strength in config.rewind.strengths)
    count = how_many(len(config.rewind.strengths), "more evaluation")
    yield f"strengths {shown}: {count} at the end of each trial, without more training"
    for recipe in config.search.recipes:
        if reason := largest_trial(config, recipe).method.why_not_scaled:
            yield f"{recipe}: evaluated at strength 1 alone: {reason}"


def _repairs(config: SweepConfig) -> Iterator[str]:
    """What is done to weights once the trials are, and where nothing can be."""
    if not config.repairs:
        return
    yield f"repairs {', '.join(config.repairs)}: one evaluation each, once all trials are done"
    for recipe in config.search.recipes:
        if reason := largest_trial(config, recipe).method.why_not_repaired:
            yield f"{recipe}: not repaired: {reason}"


def _packing(config: SweepConfig) -> Iterator[str]:
    """Which recipes' trials train in slots, and why others do not that should."""
    packed = packed_recipes(config)
    if packed.names:
        slots = config.recipe_resources(packed.names[0]).slots
        number = "as many as end it first" if slots == "auto" else slots
        others = [recipe for recipe in config.search.recipes if recipe not in packed.names]
        room = ", if the cluster has room for it beside a trial of the others" if others else ""
        names = ", ".join(packed.names)
        yield f"{names}: trials train together in slots of one base, {number} at a time{room}"
    yield from packed.messages()


def _estimate(config: SweepConfig, runs: _Runs, samples: int | None) -> str:
    """How much is trained on, in all and by the mean trial."""
    if samples is None:
        return "estimate: how much is trained on is known once the data are tokenised"
    trains = [point.config.train for point in runs.points]
    steps = [train.total_steps(samples) for train in trains]
    trained_on = [n * train.batch_size for n, train in zip(steps, trains, strict=True)]
    text = f"{runs.count} yet to run" if runs.ended else how_many(runs.count, "trial")
    every = "all " if runs.count > 1 else ""
    return (
        f"estimate: {how_many(samples, 'sample')}, about "
        f"{how_many(round(fmean(steps)), 'optimizer step')} and "
        f"{how_many(trains[0].evaluations(samples), 'evaluation')} a trial, "
        f"{runs.count * fmean(trained_on):,.0f} samples trained on in {every}{text}"
        f"{', if none is stopped early' if config.early_stopping else ''}"
    )
