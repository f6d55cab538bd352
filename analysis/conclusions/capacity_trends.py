"""Conclusions on how results go with settings, over all trials of a recipe.

All are compared as training left them, at strength 1: what a setting does would else be mixed with
what was picked afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.conclusions.conclusion import Conclusion, for_recipes, p_text
from analysis.results.formatting import NAMES
from analysis.results.repeats import SIGNIFICANT
from analysis.results.sample_size import FEWEST_CAPACITIES
from analysis.shown_sweeps import Results
from analysis.stats.trends import spearman
from analysis.sweeps import Sweep
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialRecord

_FEWEST_TRIALS = 8


def forgetting_and_step_size(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Whether forgetting follows the size of the update, at equal capacity.

    The size is learning rate x scale; for methods without a scale the learning rate.
    """
    return for_recipes(results, sweep, _forgetting) if results.tasks("retention") else []


def _forgetting(results: Results, sweep: Sweep, recipe: str) -> list[Conclusion]:
    trials = _measured(results, sweep, recipe, FORGETTING_MEAN)
    if len(trials) < _FEWEST_TRIALS:
        question = "whether forgetting follows learning rate x scale"
        return [_too_few_trials(results, recipe, question, trials)]
    steps = [record.config.step_size for record in trials]
    sizes = [size for size in steps if size is not None]
    what = "learning rate x scale"
    if len(sizes) < len(trials):
        sizes, what = [record.config.learning_rate for record in trials], "learning rate"
    name = _capacity_name(trials)
    given = name, _capacities(trials)
    over = f"{what} at equal {name}"
    return [_trend(results, sweep, FORGETTING_MEAN, trials, sizes, over, given)]


def trend_over_capacities(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Whether each score rises or falls with the capacity, at equal learning rate."""
    return for_recipes(results, sweep, _over_capacities)


def _over_capacities(results: Results, sweep: Sweep, recipe: str) -> list[Conclusion]:
    own = _sized(results, sweep, recipe)
    if not _tell_capacities_apart(own):
        return [_too_few_of_capacities(results, recipe, "anything", own)]
    conclusions = []
    for metric in results.scores:
        trials = _measured(results, sweep, recipe, metric)
        if not _tell_capacities_apart(trials):
            conclusions.append(_too_few_of_capacities(results, recipe, NAMES[metric], trials))
            continue
        rates = "learning rate", [record.config.learning_rate for record in trials]
        over = f"{_capacity_name(trials)} at equal learning rate"
        found = _trend(results, sweep, metric, trials, _capacities(trials), over, rates)
        conclusions.append(found)
    return conclusions


def _sized(results: Results, sweep: Sweep, recipe: str) -> list[TrialRecord]:
    """Complete trials of a recipe that have a capacity."""
    return [r for r in results.recipe_trials(recipe, sweep) if r.config.capacity is not None]


def _measured(results: Results, sweep: Sweep, recipe: str, metric: str) -> list[TrialRecord]:
    own = _sized(results, sweep, recipe)
    return [record for record in own if record.metric(metric) is not None]


def _capacities(trials: Sequence[TrialRecord]) -> list[float]:
    return [float(each.number) for record in trials if (each := record.config.capacity)]


def _capacity_name(trials: Sequence[TrialRecord]) -> str:
    found = (record.config.capacity for record in trials)
    return next((capacity.name for capacity in found if capacity), "capacity")


def _tell_capacities_apart(trials: Sequence[TrialRecord]) -> bool:
    return len(trials) >= _FEWEST_TRIALS and len(set(_capacities(trials))) >= FEWEST_CAPACITIES


def _trend(
    results: Results,
    sweep: Sweep,
    metric: str,
    trials: Sequence[TrialRecord],
    settings: Sequence[float],
    over: str,
    given: tuple[str, Sequence[float]],
) -> Conclusion:
    """What complete trials show; open where others were stopped early, which may bias a trend."""
    held, held_values = given
    values = [record.metric(metric) or 0.0 for record in trials]
    found = spearman(settings, values, given=held_values)
    tested = (
        "no two trials that compare differ in both"
        if math.isnan(found.rho)
        else f"partial Spearman's rho {found.rho:.2f} given the {held}, {p_text(found.p_value)}"
    )
    config = trials[0].config
    stopped = results.more_stopped(sweep, config.recipe)
    evidence = f"{tested}, n = {found.n} {config.recipe_title} trials{stopped}"
    what = NAMES[metric]
    if found.p_value >= SIGNIFICANT:
        return Conclusion(f"No trend of {what} with {over} is shown.", evidence, "open")
    statement = f"{what.capitalize()} {'rises' if found.rho > 0 else 'falls'} with {over}"
    if stopped:
        return Conclusion(f"{statement} among the trials that ran to their end.", evidence, "open")
    return Conclusion(f"{statement}.", evidence)


def _too_few_of_capacities(
    results: Results, recipe: str, what: str, trials: Sequence[TrialRecord]
) -> Conclusion:
    name = _capacity_name(_searched(results, recipe))
    plural = "capacities" if name == "capacity" else f"{name}s"
    question = f"whether {what} rises or falls with {name}"
    return _too_few_trials(results, recipe, question, trials, f" over {FEWEST_CAPACITIES} {plural}")


def _too_few_trials(
    results: Results, recipe: str, question: str, trials: Sequence[TrialRecord], over: str = ""
) -> Conclusion:
    title = _searched(results, recipe)[0].config.recipe_title
    return Conclusion(
        f"Too few {title} trials to say {question}.",
        f"{len(trials)} complete; {_FEWEST_TRIALS}{over} are needed",
        "too few data",
    )


def _searched(results: Results, recipe: str) -> list[TrialRecord]:
    return [record for record in results.search_trials if record.config.recipe == recipe]
