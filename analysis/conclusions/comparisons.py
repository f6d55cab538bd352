"""Conclusions on the best trials: against the base, between methods and between sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from analysis.conclusions.conclusion import Conclusion, p_text
from analysis.item_comparison import Comparison
from analysis.results.formatting import capitalized, end_in_points, how_many, points
from analysis.results.item_metrics import rounding
from analysis.results.repeats import LEVEL, diverged
from analysis.shown_sweeps import Results
from analysis.stats.intervals import Interval, difference_over_seeds, over_seeds
from analysis.stats.significance import holm
from analysis.sweeps import Sweep
from trainables.config import Role
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC, VALIDATION_LOSS
from trainables.records.schema import TrialRecord

_RoleWords = tuple[Role, str, tuple[str, str], str]
_ROLES: tuple[_RoleWords, ...] = (
    ("retention", FORGETTING_MEAN, ("forgets less", "forgets more"), "on the retention tasks"),
    ("in_domain", IN_DOMAIN_ACC, ("gains more", "gains less"), "in the domain"),
    ("ood", OOD_ACC, ("is better", "is worse"), "out of the domain"),
)


_MOST_IN_PAIRS = 4


@dataclass(frozen=True)
class _Subject:
    """What a sentence is about, as it is called at the start and within: names keep their case."""

    first: str
    within: str


def recommended_against_base(results: Results) -> list[Conclusion]:
    """What the recommended trial gains in the domain, and forgets."""
    if results.recommendation is None:
        statement = "No trial can be recommended: none is complete with every objective."
        count = how_many(len(results.search_trials), "trial")
        return [Conclusion(statement, count, "too few data")]
    trial, of = results.recommendation.trial, len(results.candidates)
    word = results.recommendation.word
    subject = _Subject(f"The {word} trial", f"the {word} trial")
    picked = f"best of {of} trials"
    conclusions = _loss_against_base(results, trial, subject.first, picked)
    roles: tuple[tuple[Role, str, tuple[str, str], str], ...] = (
        ("in_domain", IN_DOMAIN_ACC, ("gains", "loses"), "in the domain"),
        ("retention", FORGETTING_MEAN, ("forgets", "gains"), "on the retention tasks"),
    )
    for role, metric, verbs, where in roles:
        quantity = "forgetting" if role == "retention" else "the gain"
        found = results.items.compare(trial, None, list(results.tasks(role)), of)
        if found is None:
            continue
        if role == "retention":
            found = found.negated()
        found = _with_own_repeats(results, found, trial, metric)
        verb = verbs[0] if found.difference.estimate >= 0 else verbs[1]
        shown = f"{verb} {_size(found)} points {where}"
        otherwise = f"cannot be distinguished from the base {where}"
        conclusions.append(_difference(subject, shown, found, otherwise, picked, quantity))
    return conclusions


def _loss_against_base(
    results: Results, trial: TrialRecord, subject: str, picked: str
) -> list[Conclusion]:
    """The gain of a sweep without in-domain tasks; no record has the losses row by row."""
    # On the rows that its own sweep held out.
    before, after = results.sweep(trial).base.metrics.get(results.gain), trial.metric(results.gain)
    if results.gain != VALIDATION_LOSS or before is None or after is None:
        return []
    verb = "lowers" if after < before else "does not lower"
    values = results.repeated(trial, VALIDATION_LOSS)
    over = _over_repeats(len(values), f"{fmean(values):.3f}") if values else ""
    sizes = f"{before:.3f} to {after:.3f} nats/token{over}"
    statement = f"{subject} {verb} the base's validation loss: {sizes}."
    parts = [f"{picked}; no interval over the held-out rows"]
    seeds, lost = results.over_seeds(trial, VALIDATION_LOSS), diverged(results.repeats(trial))
    if seeds:
        ends = f"{seeds.low:.3f} to {seeds.high:.3f} nats/token, n = {seeds.n} repeats"
        parts.append(f"over seeds {ends}")
    if lost:
        parts.append(f"repeats that diverged: {lost}")
    is_shown = seeds is not None and not lost and after < before and seeds.high < before
    return [Conclusion(statement, "; ".join(parts), "shown" if is_shown else "open")]


def _with_own_repeats(
    results: Results, found: Comparison, trial: TrialRecord, metric: str
) -> Comparison:
    """The comparison with the base, which runs once, with what the trial's repeats say of it."""
    values = results.repeated(trial, metric)
    base = results.base.metrics[metric]
    seeds = over_seeds([value - base for value in values], rounding(metric, results.base.scores))
    return replace(
        found,
        over_repeats=fmean(values) - base if values else None,
        seeds=seeds and seeds.within(-1, 1),
        repeats=len(values),
        diverged=diverged(results.repeats(trial)),
    )


def _size(comparison: Comparison) -> str:
    return _in_points(comparison.difference.estimate)


def _in_points(share: float) -> str:
    return f"{100 * abs(share):.1f}"


def _over_repeats(count: int, mean: str, of: str = "") -> str:
    """The mean over as many repeats: one run's size may lie outside of their interval."""
    if count == 1:
        return f"; in a run with another seed {mean}"
    return f"; over {count} runs{of} with other seeds {mean} on average"


def _difference(
    subject: _Subject,
    shown: str,
    comparison: Comparison,
    otherwise: str,
    picked: str,
    quantity: str,
    adjusted: str = "",
) -> Conclusion:
    """What is `shown` of the subject, or `otherwise`: items may tell apart what repeats do not."""
    evidence = _evidence(comparison, picked, quantity, adjusted)
    mean = comparison.over_repeats
    if comparison.is_shown:
        of = " of one of them" if comparison.is_once else ""
        over = "" if mean is None else _over_repeats(comparison.repeats, _in_points(mean), of)
        return Conclusion(f"{subject.first} {shown}{over}.", evidence)
    statement = f"{subject.first} {otherwise}"
    if comparison.runs_differ:
        within = f"{subject.within} {shown}"
        more = "repeats" if mean is None else "more repeats"
        statement = (
            f"That {within} is not confirmed by repeats with other seeds"
            if comparison.is_doubted
            else f"In one run of each, {within}; {more} with other seeds would show whether it is "
            "so for other trainings, too (`confirm`)"
        )
    elif comparison.repeats_differ:
        statement += " by these items alone; repeats with other seeds agree on a difference"
    return Conclusion(f"{statement}.", evidence, "open")


def _evidence(comparison: Comparison, picked: str, quantity: str, over: str) -> str:
    """Such as `95 % interval of the gain -0.4 to +3.1 points, n = 384; McNemar p = 0.13`.

    It says so if the models were picked on the items that they are compared on.
    """
    is_picked = comparison.picked_from > 1
    interval = comparison.difference
    parts = [
        f"{'simultaneous ' if is_picked else ''}{100 * LEVEL:g} % interval of {quantity} "
        f"{_ends(interval)}, n = {interval.n}"
    ]
    if comparison.differing:
        adjusted = (" (Bonferroni)" if is_picked else "") + over
        parts.append(f"{comparison.test} {p_text(comparison.p_value)}{adjusted}")
    else:
        parts.insert(0, "no item differs")
    if seeds := comparison.seeds:
        picked_run = ", which was picked" if comparison.is_flattered else ""
        once = f"repeats of one, for a run of the other{picked_run}"
        of = once if comparison.is_once else "repeats"
        parts.append(f"over seeds {_ends(seeds)}, n = {comparison.repeats} {of}")
    elif comparison.over_repeats is not None:
        once = "repeats of one, without a complete one of the other,"
        of = once if comparison.is_once else "repeats"
        parts.append(f"over {of} {points(comparison.over_repeats)} points, too few for an interval")
    if comparison.diverged:
        parts.append(f"repeats that diverged: {comparison.diverged}")
    return "; ".join([*parts, f"{picked}, picked on these items"] if is_picked else parts)


def _ends(interval: Interval) -> str:
    return f"{end_in_points(interval.low)} to {end_in_points(interval.high)} points"


@dataclass(frozen=True)
class _Pair:
    """Two trials, each the best of several, and how sentences name them.

    Attributes:
        subject: such as `full fine-tuning at its best trade-off (trial 3)`.
        other: such as `the best LoRA (trial 5, rank 8)`.
        minus: such as `full fine-tuning minus LoRA`.
        picked_from: of how many each of the two is the best.
        picked: such as `best of 4 full fine-tuning and of 12 LoRA trials`.
    """

    first: TrialRecord
    second: TrialRecord
    subject: _Subject
    other: str
    minus: str
    picked_from: tuple[int, int]
    picked: str

    def compares(self, *trials: TrialRecord) -> bool:
        """Whether these are the two trials that are compared."""
        own = {record.config.trial_id for record in (self.first, self.second)}
        return own == {record.config.trial_id for record in trials}


def best_of_sweeps(results: Results) -> list[Conclusion]:
    """Compare the best trade-off of each sweep with that of the first."""
    return [
        conclusion
        for pair in _sweeps_with_first(results)
        for role in _ROLES
        for conclusion in _compared(results, [pair], role)
    ]


def _sweeps_with_first(results: Results) -> list[_Pair]:
    reference, *others = results.sweeps
    pairs = []
    for sweep in others:
        trials = [results.of(s, results.complete) for s in (sweep, reference)]
        if not all(trials):
            continue
        first, second = map(results.nearest_to_ideal, trials)
        n, of = (len(results.of(s, results.candidates)) for s in (sweep, reference))
        best = f"best trade-off of {sweep.title} ({_trial(results, first)})"
        pair = _Pair(
            first,
            second,
            _Subject(f"The {best}", f"the {best}"),
            f"that of {reference.title} ({_trial(results, second)})",
            f"{sweep.title} minus {reference.title}",
            (n, of),
            f"best of {how_many(n, 'trial')} of {sweep.title} and of {of} of {reference.title}",
        )
        pairs.append(pair)
    return pairs


def _trial(results: Results, record: TrialRecord) -> str:
    return f"trial {record.number}, {record.config.group_label}{_breach(results, record)}"


def _breach(results: Results, record: TrialRecord) -> str:
    """Said of the best of trials that all break a constraint; empty if this one breaks none."""
    return "" if results.keeps_constraints(record) else ", which breaks a constraint"


def best_of_recipes(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Compare the recipes of a sweep, each at its best trade-off, pair by pair.

    Of more than `_MOST_IN_PAIRS` recipes each is compared with the best alone. Nothing where
    `best_of_sweeps` compares the same two, as each was swept by itself.
    """
    compared = _sweeps_with_first(results)
    pairs = [
        pair
        for pair in _recipe_pairs(results, sweep)
        if not any(other.compares(pair.first, pair.second) for other in compared)
    ]
    return [conclusion for role in _ROLES for conclusion in _compared(results, pairs, role)]


def _recipe_pairs(results: Results, sweep: Sweep) -> list[_Pair]:
    trials = {recipe: results.recipe_trials(recipe, sweep) for recipe in results.recipes}
    best = {name: results.nearest_to_ideal(own) for name, own in trials.items() if own}
    reference = results.reference(sweep)
    if reference and reference.sweep is not sweep and best:  # methods may be swept one by one
        best[f"{reference.recipe}{results.whose(reference.sweep)}"] = reference.best
    if len(best) <= _MOST_IN_PAIRS:
        return [_recipe_pair(results, other, one) for one, other in combinations(best.values(), 2)]
    leader = results.nearest_to_ideal([*best.values()])
    return [_recipe_pair(results, one, leader) for one in best.values() if one is not leader]


def _recipe_pair(results: Results, first: TrialRecord, second: TrialRecord) -> _Pair:
    (one, n), (other, of) = (_picked_of(results, record) for record in (first, second))
    capacities = [f", {r.config.capacity}" if r.config.capacity else "" for r in (first, second)]
    breaches = [_breach(results, record) for record in (first, second)]
    at_best = f"at its best trade-off ({results.name(first)}{capacities[0]}{breaches[0]})"
    begin = capitalized(one) if one == first.config.method.title else one
    return _Pair(
        first,
        second,
        _Subject(f"{begin} {at_best}", f"{one} {at_best}"),
        f"the best {other} ({results.name(second)}{capacities[1]}{breaches[1]})",
        f"{one} minus {other}",
        (n, of),
        f"best of {n} {one} and of {how_many(of, f'{other} trial')}",
    )


def _picked_of(results: Results, record: TrialRecord) -> tuple[str, int]:
    """The title of a trial's recipe, and how many of its sweep's trials it is the best of."""
    own = results.of(results.sweep(record), results.candidates)
    title = record.config.recipe_title
    return title, sum(each.config.recipe == record.config.recipe for each in own)


def _compared(results: Results, pairs: Sequence[_Pair], role: _RoleWords) -> list[Conclusion]:
    """Compare the pairs, corrected for all trials that could have been picked instead.

    p-values of several pairs are adjusted over these, too (Holm).
    """
    name, metric, verbs, where = role
    tasks = list(results.tasks(name))
    made = [
        (pair, results.items.compare(pair.first, pair.second, tasks, math.prod(pair.picked_from)))
        for pair in pairs
    ]
    known = [(pair, comparison) for pair, comparison in made if comparison is not None]
    adjusted = holm([comparison.p_value for _, comparison in known]) if len(known) > 1 else None
    conclusions = []
    for place, (pair, comparison) in enumerate(known):
        found = comparison.with_p_value(adjusted[place]) if adjusted else comparison
        verb = verbs[0] if found.difference.estimate > 0 else verbs[1]
        what = "accuracy"
        if name == "retention":
            found, what = found.negated(), "forgetting"
        found = _with_repeats(results, found, pair, metric)
        over = f" over {len(known)} pairs (Holm)" if adjusted else ""
        conclusions.append(
            _difference(
                pair.subject,
                f"{verb} than {pair.other} by {_size(found)} points {where}",
                found,
                f"and {pair.other} cannot be distinguished {where}",
                pair.picked,
                f"the difference in {what}, {pair.minus}, one run of each,",
                over,
            )
        )
    return conclusions


def _with_repeats(results: Results, found: Comparison, pair: _Pair, metric: str) -> Comparison:
    """The comparison in this metric with what both models' repeats say of it.

    Where one was never repeated, its own run is compared with the other's repeats; picked of
    several, as if by luck, it may be shown to be worse, but not better.
    """
    models = pair.first, pair.second
    values = [results.repeated(record, metric) for record in models]
    own = [record.metric(metric) or 0.0 for record in models]  # both have it, as they have items
    one, other = (of_repeats or [run] for of_repeats, run in zip(values, own, strict=True))
    seeds = difference_over_seeds(one, other, rounding(metric, results.base.scores))
    lead = fmean(one) - fmean(other)
    better = 0 if (lead > 0) != (metric == FORGETTING_MEAN) else 1
    return replace(
        found,
        over_repeats=lead if any(values) else None,
        is_once=not all(values),
        is_flattered=not values[better] and pair.picked_from[better] > 1,
        seeds=seeds,
        repeats=sum(map(len, values)),
        diverged=sum(diverged(results.repeats(record)) for record in models),
    )
