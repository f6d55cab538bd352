"""Conclusions on how results go with settings, over all LoRA trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.conclusions.conclusion import Conclusion, p_text
from analysis.results.formatting import NAMES, rate
from analysis.results.repeats import SIGNIFICANT
from analysis.results.sample_size import FEWEST_RANKS
from analysis.shown_sweeps import Results
from analysis.stats.trends import Trend, jonckheere, spearman
from analysis.sweeps import Sweep
from trainables.config import TrialConfig
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialRecord

_FEWEST_TRIALS = 8


def forgetting_and_step_size(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Whether forgetting follows the size of the update, learning rate x scale, at equal rank.

    At a fixed alpha a higher rank has a smaller scale but forgets more: over all ranks together
    forgetting may fall with the size of the update, though at each it rises.
    """
    if not results.tasks("retention"):
        return []
    lora = results.of(sweep, results.lora)
    trials = [record for record in lora if record.metric(FORGETTING_MEAN) is not None]
    if len(trials) < _FEWEST_TRIALS:
        return [_too_few_trials("whether forgetting follows learning rate x scale", trials)]
    steps = [record.config.step_size for record in trials]
    found = spearman(steps, _values(trials, FORGETTING_MEAN), given=_ranks(trials))
    told = f"partial Spearman's rho {found.statistic:.2f} given the rank"
    over = "learning rate x scale at equal rank"
    return [_trend(results, sweep, FORGETTING_MEAN, over, found, told)]


def trend_over_ranks(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Whether each score rises or falls with the rank, at equal learning rate."""
    lora = results.of(sweep, results.lora)
    if not _tell_ranks_apart(lora):
        return [_too_few_of_ranks("anything", lora)]
    over = "rank at equal learning rate"
    conclusions = []
    for metric in results.scores:
        trials = [record for record in lora if record.metric(metric) is not None]
        if not _tell_ranks_apart(trials):
            conclusions.append(_too_few_of_ranks(NAMES[metric], trials))
            continue
        conclusions.append(_trend(results, sweep, metric, over, *_over_ranks(trials, metric)))
    return conclusions


def _over_ranks(trials: Sequence[TrialRecord], metric: str) -> tuple[Trend, str]:
    """The trend at equal learning rate, and its statistic in words.

    Within the rates of a grid, of which one may be the best; of rates that were drawn few trials
    share one, and strata of neighbours would leave too few pairs to tell anything from.
    """
    ranks, values = _ranks(trials), _values(trials, metric)
    rates = [record.config.learning_rate for record in trials]
    strata = len(set(rates))
    if 2 * strata <= len(trials):
        found = jonckheere(ranks, values, rates)
        within = "" if strata == 1 else f" within {strata} strata of learning rate"
        return found, f"Jonckheere-Terpstra{within}, Kendall's tau {found.statistic:.2f}"
    found = spearman(ranks, values, given=rates)
    return found, f"partial Spearman's rho {found.statistic:.2f} given the learning rate"


def _ranks(trials: Sequence[TrialRecord]) -> list[float]:
    return [float(record.rank or 0) for record in trials]


def _tell_ranks_apart(trials: Sequence[TrialRecord]) -> bool:
    return len(trials) >= _FEWEST_TRIALS and len(set(_ranks(trials))) >= FEWEST_RANKS


def _values(trials: Sequence[TrialRecord], metric: str) -> list[float]:
    """Of trials that all have it."""
    return [record.metric(metric) or 0.0 for record in trials]


def _trend(
    results: Results, sweep: Sweep, metric: str, over: str, found: Trend, statistic: str
) -> Conclusion:
    """What complete trials show; open where others were stopped early.

    Without those, a trend may be one of the selection: at ranks that forget most only the trials
    that forget least are left, at learning rates at which other metrics differ, too.
    """
    # It is NaN if no two trials, at equal rank or learning rate, differ in both.
    tested = (
        "no two trials that compare differ in both"
        if math.isnan(found.statistic)
        else f"{statistic}, {p_text(found.p_value)}"
    )
    stopped = results.more_stopped(sweep)
    evidence = f"{tested}, n = {found.n} LoRA trials{stopped}"
    what = NAMES[metric]
    if found.p_value >= SIGNIFICANT:
        return Conclusion(f"No trend of {what} with {over} is shown.", evidence, "open")
    told = f"{what.capitalize()} {'rises' if found.statistic > 0 else 'falls'} with {over}"
    if stopped:
        return Conclusion(f"{told} among the trials that ran to their end.", evidence, "open")
    return Conclusion(f"{told}.", evidence)


def _too_few_of_ranks(what: str, trials: Sequence[TrialRecord]) -> Conclusion:
    question = f"whether {what} rises or falls with rank"
    return _too_few_trials(question, trials, f" over {FEWEST_RANKS} ranks")


def _too_few_trials(question: str, trials: Sequence[TrialRecord], over: str = "") -> Conclusion:
    return Conclusion(
        f"Too few LoRA trials to say {question}.",
        f"{len(trials)} complete; {_FEWEST_TRIALS}{over} are needed",
        "too few data",
    )


def learning_rates(results: Results, sweep: Sweep) -> list[Conclusion]:
    """LoRA's learning rate at its best trade-off divided by full fine-tuning's.

    It is about 10 if both are tuned well; at the edge of what was tried, a better one may lie
    beyond.
    """
    full = results.full(sweep)
    trials = results.of(sweep, results.lora)
    if full is None or min(len(full.trials), len(trials)) < _FEWEST_TRIALS // 2:
        return []
    one, other = results.nearest_to_ideal(trials).config, full.best.config
    return [
        Conclusion(
            f"At its best trade-off LoRA's learning rate ({_rate_among(one, trials)}) is "
            f"{one.learning_rate / other.learning_rate:.2g} times that of full fine-tuning "
            f"({_rate_among(other, full.trials)}).",
            f"best trade-off of {len(trials)} LoRA and {len(full.trials)} full "
            f"trials{'' if full.sweep is sweep else results.whose(full.sweep)}; "
            "no interval, a learning rate has one value in each trial",
            "open",
        )
    ]


def _rate_among(config: TrialConfig, trials: Sequence[TrialRecord]) -> str:
    """Such as `5.0e-04, the lowest tried`."""
    tried = [record.config.learning_rate for record in trials]
    ends = {"lowest": min(tried), "highest": max(tried)}
    at = [end for end, value in ends.items() if config.learning_rate == value]
    edge = "only one" if len(at) > 1 else "".join(at)
    return rate(config.learning_rate) + (f", the {edge} tried" if edge else "")
