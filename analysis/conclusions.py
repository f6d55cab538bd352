"""What the data say: sentences with their evidence, or with what is missing.

No sentence is written by hand for a sweep; each comes with the numbers that selected it.
p-values over trials are indicative: a sampler that learns from results does not draw at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from analysis.results import Comparison, Results
from analysis.stats.intervals import items_needed, upper_bound
from analysis.stats.trends import Trend, alike, jonckheere, spearman
from analysis.sweeps import Sweep
from trainables.config import Role
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC
from trainables.results.records import TrialRecord
from trainables.results.repeats import LEVEL
from trainables.results.wording import NAMES, SCORES, method_name, points, rate

NEGLIGIBLE = 0.02
"""A difference in accuracy that counts as none: 2 points."""
_FEWEST_RANKS = 3
_FEWEST_TRIALS = 8
_ALIKE = 4  # trials of similar learning rate, where each has its own

_ROLES: tuple[tuple[Role, str, tuple[str, str], str], ...] = (
    ("retention", FORGETTING_MEAN, ("forgets less", "forgets more"), "on the retention tasks"),
    ("in_domain", IN_DOMAIN_ACC, ("gains more", "gains less"), "in the domain"),
    ("ood", OOD_ACC, ("is better", "is worse"), "out of the domain"),
)

Verdict = Literal["shown", "open", "too few data"]


@dataclass(frozen=True)
class Conclusion:
    """One sentence and its evidence.

    Attributes:
        verdict: `open` if the data do not decide, `too few data` if they cannot.
    """

    statement: str
    evidence: str
    verdict: Verdict = "shown"


def conclude(results: Results) -> list[Conclusion]:
    """Every conclusion that the tasks and methods allow, most relevant first.

    What compares trials by their settings is said of each sweep by itself.
    """
    made = (
        _rank_that_suffices,
        _full_against_lora,
        _forgetting_and_step_size,
        _trend_over_ranks,
        _learning_rates,
    )
    of_sweeps = [
        _told_of(results, sweep, conclusion)
        for make in made
        for sweep in results.sweeps
        for conclusion in make(results, sweep)
    ]
    return [*_recommended_against_base(results), *_sweeps(results), *of_sweeps]


def _told_of(results: Results, sweep: Sweep, conclusion: Conclusion) -> Conclusion:
    """Name the sweep, if there are several."""
    if len(results.sweeps) == 1:
        return conclusion
    return replace(conclusion, statement=f"{sweep.title}: {conclusion.statement}")


def p_text(p_value: float) -> str:
    """Such as `p = 0.013`, `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _recommended_against_base(results: Results) -> list[Conclusion]:
    if results.recommendation is None:
        statement = "No trial can be recommended: none is complete with every objective."
        return [Conclusion(statement, f"{len(results.search_trials)} trials", "too few data")]
    trial, of = results.recommendation.trial, len(results.candidates)
    gain = results.compare(trial, None, list(results.tasks("in_domain")), of)
    loss = results.compare(trial, None, list(results.tasks("retention")), of)
    picked = f"best of {of} trials"
    conclusions = []
    if gain is not None:
        told = "gains" if gain.difference.estimate >= 0 else "loses"
        conclusions.append(
            _difference(
                f"The recommended trial {told} {_size(gain)} points in the domain over the base",
                gain,
                "The recommended trial cannot be told from the base in the domain",
                picked,
                "the gain",
            )
        )
    if loss is not None:
        loss = _forgetting(loss)
        told = "forgets" if loss.difference.estimate >= 0 else "gains"
        conclusions.append(
            _difference(
                f"It {told} {_size(loss)} points on the retention tasks",
                loss,
                "Its change on the retention tasks cannot be told from none",
                picked,
                "forgetting",
            )
        )
    return conclusions


def _forgetting(accuracy: Comparison) -> Comparison:
    return replace(accuracy, difference=accuracy.difference.negated())


def _size(comparison: Comparison) -> str:
    return f"{100 * abs(comparison.difference.estimate):.1f}"


def _difference(
    shown: str, comparison: Comparison, otherwise: str, picked: str, quantity: str
) -> Conclusion:
    is_shown = comparison.is_shown
    return Conclusion(
        f"{shown if is_shown else otherwise}.",
        _evidence(comparison, picked, quantity),
        "shown" if is_shown else "open",
    )


def _evidence(comparison: Comparison, picked: str, quantity: str) -> str:
    """Such as `95 % interval of the gain -0.4 to +3.1 points, n = 384; McNemar p = 0.13`.

    It says so if the models were picked on the items that they are compared on.
    """
    is_picked = comparison.picked_from > 1
    interval = comparison.difference
    told = [
        f"{'simultaneous ' if is_picked else ''}{100 * LEVEL:g} % interval of {quantity} "
        f"{points(interval.low)} to {points(interval.high)} points, n = {interval.n}"
    ]
    if comparison.differing:
        adjusted = " (Bonferroni)" if is_picked else ""
        told.append(f"{comparison.test} {p_text(comparison.p_value)}{adjusted}")
    else:
        told.insert(0, "no item differs")
    if seeds := comparison.seeds:
        told.append(
            f"over seeds {points(seeds.low)} to {points(seeds.high)} points, n = {seeds.n} repeats"
        )
    return "; ".join([*told, f"{picked}, picked on these items"] if is_picked else told)


def _rank_that_suffices(results: Results, sweep: Sweep) -> list[Conclusion]:
    """The smallest rank whose best trial is at most `NEGLIGIBLE` worse than every higher rank's.

    For one rank, all higher ones must be shown to gain no more: an intersection-union test, which
    needs no correction (Berger 1982). Bonferroni's is applied over the candidate ranks, and over
    the trials that a candidate's best was picked from, as the luckiest of many seems to miss less.
    Picking a higher rank's best only raises the bound.
    """
    groups = {group.rank or 0: group for group in results.lora_groups(sweep)}
    best = {
        rank: max(group.trials, key=lambda r: (r.metric(IN_DOMAIN_ACC) or 0.0, -r.number))
        for rank, group in groups.items()
    }
    ranks = sorted(best)
    if len(ranks) < _FEWEST_RANKS:
        statement = "Too few ranks to say which one suffices."
        return [Conclusion(statement, f"{len(ranks)} ranks with a complete trial", "too few data")]
    tasks, stopped = list(results.tasks("in_domain")), results.more_stopped(sweep)
    items, needed = 0, []
    for rank in ranks[:-1]:
        found = [results.differences(best[r], best[rank], tasks) for r in ranks if r > rank]
        gains = [gain for gain in found if gain is not None]
        if len(gains) < len(found):
            return []
        level = 1 - (1 - LEVEL) / (len(ranks) - 1) / groups[rank].picked_from
        most = max(upper_bound(*gain, level=level) for gain in gains)
        items = sum(map(len, gains[0][0]))
        needed.append(items_needed(*gains[0], bound=NEGLIGIBLE, level=level))
        if most <= NEGLIGIBLE:
            return [
                Conclusion(
                    f"Rank {rank} suffices in the domain: the best trial of no higher rank gains "
                    f"more than {max(0.0, math.ceil(1000 * most) / 10):.1f} points over its best.",
                    f"simultaneous {100 * LEVEL:g} % upper bound, n = {items} items, best trial of "
                    f"each of {len(ranks)} ranks, picked on these items{stopped}",
                )
            ]
    if items < min(needed):
        statement = (
            f"Too few items to show to within {100 * NEGLIGIBLE:g} points that a rank below "
            f"{ranks[-1]} suffices in the domain."
        )
        told = f"n = {items}; {min(needed)} are needed even if ranks differ in none{stopped}"
        return [Conclusion(statement, told, "too few data")]
    return [
        Conclusion(
            f"No rank below {ranks[-1]} is shown to suffice in the domain to within "
            f"{100 * NEGLIGIBLE:g} points.",
            f"best trial of each of {len(ranks)} ranks, simultaneous {100 * LEVEL:g} % bounds"
            f"{stopped}",
            "open",
        )
    ]


@dataclass(frozen=True)
class _Pair:
    """Two trials, each the best of several, and how sentences name them.

    Attributes:
        subject: such as `Full fine-tuning at its best trade-off (trial 3)`.
        short: where nothing is said of it alone, such as `Full fine-tuning`.
        other: such as `the best LoRA (trial 5, rank 8)`.
        minus: such as `full fine-tuning minus LoRA`.
        pairs: how many could have been picked instead, with this one.
        picked: such as `best of 4 full and of 12 LoRA trials`.
    """

    first: TrialRecord
    second: TrialRecord
    subject: str
    short: str
    other: str
    minus: str
    pairs: int
    picked: str


def _sweeps(results: Results) -> list[Conclusion]:
    """Compare the best trade-off of each sweep with that of the first."""
    reference, *others = results.sweeps
    conclusions = []
    for sweep in others:
        trials = [results.of(s, results.complete) for s in (sweep, reference)]
        if not all(trials):
            continue
        first, second = map(results.nearest_to_ideal, trials)
        n, of = (len(results.of(s, results.candidates)) for s in (sweep, reference))
        best = f"The best trade-off of {sweep.title} ({_trial(first)})"
        pair = _Pair(
            first,
            second,
            best,
            best,
            f"that of {reference.title} ({_trial(second)})",
            f"{sweep.title} minus {reference.title}",
            n * of,
            f"best of {n} trials of {sweep.title} and of {of} of {reference.title}",
        )
        conclusions += _compared(results, pair)
    return conclusions


def _trial(record: TrialRecord) -> str:
    return f"trial {record.number}, {method_name(record.rank)}"


def _full_against_lora(results: Results, sweep: Sweep) -> list[Conclusion]:
    full = results.full(sweep)
    lora = results.lora_groups(sweep)
    if full is None or not lora:
        return []
    best = results.nearest_to_ideal([group.best for group in lora])
    of = sum(record.rank is not None for record in results.of(sweep, results.candidates))
    pair = _Pair(
        full.best,
        best,
        f"Full fine-tuning at its best trade-off ({results.name(full.best)})",
        f"Full fine-tuning{results.whose(full.sweep)}",
        f"the best LoRA ({results.name(best)}, rank {best.rank})",
        "full fine-tuning minus LoRA",
        full.picked_from * of,
        f"best of {full.picked_from} full and of {of} LoRA trials",
    )
    return _compared(results, pair)


def _compared(results: Results, pair: _Pair) -> list[Conclusion]:
    """Compare the two, corrected for all pairs that could have been picked instead."""
    conclusions = []
    for role, metric, verbs, where in _ROLES:
        found = results.compare(pair.first, pair.second, list(results.tasks(role)), pair.pairs)
        if found is None:
            continue
        verb = verbs[0] if found.difference.estimate > 0 else verbs[1]
        what = "accuracy"
        if role == "retention":
            found, what = _forgetting(found), "forgetting"
        seeds = results.difference_over_seeds(pair.first, pair.second, metric)
        found = replace(found, seeds=seeds)
        conclusions.append(
            _difference(
                f"{pair.subject} {verb} than {pair.other} by {_size(found)} points {where}",
                found,
                f"{pair.short} and {pair.other} cannot be told apart {where}",
                pair.picked,
                f"the difference in {what}, {pair.minus}, one run of each,",
            )
        )
    return conclusions


def _forgetting_and_step_size(results: Results, sweep: Sweep) -> list[Conclusion]:
    if not results.tasks("retention"):
        return []
    trials = results.of(sweep, results.lora)
    if len(trials) < _FEWEST_TRIALS:
        return [_too_few_trials("whether forgetting follows learning rate x scale", trials)]
    steps = [r.config.learning_rate * r.config.lora.scaling for r in trials if r.config.lora]
    found = spearman(steps, _values(trials, FORGETTING_MEAN))
    told = f"Spearman's rho {found.statistic:.2f}"
    return [_trend(results, sweep, FORGETTING_MEAN, "learning rate x scale", found, told)]


def _trend_over_ranks(results: Results, sweep: Sweep) -> list[Conclusion]:
    trials = results.of(sweep, results.lora)
    ranks = [float(record.rank or 0) for record in trials]
    if len(trials) < _FEWEST_TRIALS or len(set(ranks)) < _FEWEST_RANKS:
        return [_too_few_trials("whether anything rises or falls with rank", trials)]
    strata = alike([record.config.learning_rate for record in trials], _ALIKE)
    over = "rank at equal or similar learning rate"
    conclusions = []
    for metric in SCORES:
        if all(record.metric(metric) is not None for record in trials):
            found = jonckheere(ranks, _values(trials, metric), strata)
            told = (
                f"Jonckheere-Terpstra within {len(set(strata))} strata of learning rate, "
                f"Kendall's tau {found.statistic:.2f}"
            )
            conclusions.append(_trend(results, sweep, metric, over, found, told))
    return conclusions


def _values(trials: Sequence[TrialRecord], metric: str) -> list[float]:
    return [record.metric(metric) or 0.0 for record in trials]


def _trend(
    results: Results, sweep: Sweep, metric: str, over: str, found: Trend, statistic: str
) -> Conclusion:
    """What complete trials show; open where others were stopped early.

    Without those, a trend may be one of the selection, whatever they were stopped by, as metrics go
    together: at ranks that forget most only the trials that forget least are left, and these may
    have learning rates that generalise otherwise.
    """
    # It is NaN if no two trials differ in one of the two.
    tested = "all alike" if math.isnan(found.statistic) else f"{statistic}, {p_text(found.p_value)}"
    stopped = results.more_stopped(sweep)
    evidence = f"{tested}, n = {found.n} LoRA trials{stopped}"
    what = NAMES[metric]
    if found.p_value >= 1 - LEVEL:
        return Conclusion(f"No trend of {what} with {over} is shown.", evidence, "open")
    told = f"{what.capitalize()} {'rises' if found.statistic > 0 else 'falls'} with {over}"
    if stopped:
        return Conclusion(f"{told} among the trials that ran to their end.", evidence, "open")
    return Conclusion(f"{told}.", evidence)


def _too_few_trials(question: str, trials: Sequence[TrialRecord]) -> Conclusion:
    return Conclusion(
        f"Too few LoRA trials to say {question}.",
        f"{len(trials)} complete; {_FEWEST_TRIALS} over {_FEWEST_RANKS} ranks are needed",
        "too few data",
    )


def _learning_rates(results: Results, sweep: Sweep) -> list[Conclusion]:
    """LoRA's best learning rate divided by full fine-tuning's; about 10 if both are tuned well."""
    full = results.full(sweep)
    trials = results.of(sweep, results.lora)
    if full is None or not trials:
        return []
    fewest = min(len(full.trials), len(trials))
    if fewest < _FEWEST_TRIALS // 2:
        return []
    lora = results.nearest_to_ideal(trials)
    one, other = lora.config.learning_rate, full.best.config.learning_rate
    return [
        Conclusion(
            f"LoRA's best learning rate ({rate(one)}) is {one / other:.2g} times "
            f"that of full fine-tuning ({rate(other)}).",
            f"best trade-off of {len(trials)} LoRA and {len(full.trials)} full "
            f"trials{'' if full.sweep is sweep else results.whose(full.sweep)}; "
            "no interval, a learning rate has one value in each trial",
            "open",
        )
    ]
