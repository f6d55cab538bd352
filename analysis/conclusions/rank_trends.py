"""Conclusions on how results go with settings, over all LoRA trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.conclusions.conclusion import Conclusion, p_text
from analysis.results.formatting import NAMES
from analysis.results.repeats import SIGNIFICANT
from analysis.results.sample_size import FEWEST_RANKS
from analysis.shown_sweeps import Results
from analysis.stats.trends import spearman
from analysis.sweeps import Sweep
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialRecord

_FEWEST_TRIALS = 8


def forgetting_and_step_size(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Whether forgetting follows the size of the update, learning rate x scale, at equal rank."""
    if not results.tasks("retention"):
        return []
    trials = _measured(results, sweep, FORGETTING_MEAN)
    if len(trials) < _FEWEST_TRIALS:
        return [_too_few_trials("whether forgetting follows learning rate x scale", trials)]
    steps = [record.config.step_size for record in trials]
    over = "learning rate x scale at equal rank"
    return [_trend(results, sweep, FORGETTING_MEAN, trials, steps, over, ("rank", _ranks(trials)))]


def trend_over_ranks(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Whether each score rises or falls with the rank, at equal learning rate."""
    lora = results.of(sweep, results.lora)
    if not _tell_ranks_apart(lora):
        return [_too_few_of_ranks("anything", lora)]
    conclusions = []
    for metric in results.scores:
        trials = _measured(results, sweep, metric)
        if not _tell_ranks_apart(trials):
            conclusions.append(_too_few_of_ranks(NAMES[metric], trials))
            continue
        rates = "learning rate", [record.config.learning_rate for record in trials]
        over = "rank at equal learning rate"
        conclusions.append(_trend(results, sweep, metric, trials, _ranks(trials), over, rates))
    return conclusions


def _measured(results: Results, sweep: Sweep, metric: str) -> list[TrialRecord]:
    lora = results.of(sweep, results.lora)
    return [record for record in lora if record.metric(metric) is not None]


def _ranks(trials: Sequence[TrialRecord]) -> list[float]:
    return [float(record.rank or 0) for record in trials]


def _tell_ranks_apart(trials: Sequence[TrialRecord]) -> bool:
    return len(trials) >= _FEWEST_TRIALS and len(set(_ranks(trials))) >= FEWEST_RANKS


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
    stopped = results.more_stopped(sweep)
    evidence = f"{tested}, n = {found.n} LoRA trials{stopped}"
    what = NAMES[metric]
    if found.p_value >= SIGNIFICANT:
        return Conclusion(f"No trend of {what} with {over} is shown.", evidence, "open")
    statement = f"{what.capitalize()} {'rises' if found.rho > 0 else 'falls'} with {over}"
    if stopped:
        return Conclusion(f"{statement} among the trials that ran to their end.", evidence, "open")
    return Conclusion(f"{statement}.", evidence)


def _too_few_of_ranks(what: str, trials: Sequence[TrialRecord]) -> Conclusion:
    over = f" over {FEWEST_RANKS} ranks"
    return _too_few_trials(f"whether {what} rises or falls with rank", trials, over)


def _too_few_trials(question: str, trials: Sequence[TrialRecord], over: str = "") -> Conclusion:
    return Conclusion(
        f"Too few LoRA trials to say {question}.",
        f"{len(trials)} complete; {_FEWEST_TRIALS}{over} are needed",
        "too few data",
    )
