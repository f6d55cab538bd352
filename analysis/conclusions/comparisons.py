"""Conclusions on the best trials: against the base, between recipes and between sweeps.

Each stands for its recipe or sweep at its best strength, as that is what a user would take. Tests
are corrected for all trials and strengths that it was picked from.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from analysis.conclusions.conclusion import Conclusion, p_text
from analysis.conclusions.difference import (
    Subject,
    mean_over_repeats,
    size_in_points,
    state_difference,
)
from analysis.item_comparison import Comparison
from analysis.results.formatting import capitalized, how_many, in_list
from analysis.results.item_metrics import rounding
from analysis.results.recommendation import numbers_text
from analysis.results.repeats import diverged
from analysis.shown_sweeps import Results
from analysis.stats.intervals import difference_over_seeds, over_seeds
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
"""Recipes that are compared pair by pair, and pairs that each have a sentence whatever it says."""


def recommended_against_base(results: Results) -> list[Conclusion]:
    """What the recommended trial gains in the domain, and forgets."""
    if results.recommendation is None:
        statement = "No trial can be recommended: none is complete with every objective."
        count = how_many(len(results.search_trials), "trial")
        return [Conclusion(statement, count, "too few data")]
    trial, of = results.recommendation.trial, len(results.candidates)
    word = results.recommendation.word
    subject = Subject(f"The {word} trial", f"the {word} trial")
    picked = f"best of {of} {results.candidate_noun}s"
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
        shown = f"{verb} {size_in_points(found)} points {where}"
        otherwise = f"cannot be distinguished from the base {where}"
        conclusions.append(state_difference(subject, shown, found, otherwise, picked, quantity))
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
    over = mean_over_repeats(len(values), f"{fmean(values):.3f}") if values else ""
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


@dataclass(frozen=True)
class _Pair:
    """Two points of trials, each the best of several, and how sentences name them.

    Attributes:
        name: of the first, such as `full fine-tuning (trial 3)`.
        subject: such as `full fine-tuning at its best trade-off (trial 3)`.
        other: such as `the best LoRA (trial 5, rank 8)`.
        minus: such as `full fine-tuning minus LoRA`.
        picked_from: of how many each of the two is the best.
        picked: such as `best of 4 full fine-tuning and of 12 LoRA trials`.
    """

    first: TrialRecord
    second: TrialRecord
    name: str
    subject: Subject
    other: str
    minus: str
    picked_from: tuple[int, int]
    picked: str

    def compares(self, *trials: TrialRecord) -> bool:
        """Whether these are the two points that are compared."""
        own = {record.point_id for record in (self.first, self.second)}
        return own == {record.point_id for record in trials}


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
    noun, pairs = results.candidate_noun, []
    for sweep in others:
        trials = [results.of(s, results.points) for s in (sweep, reference)]
        if not all(trials):
            continue
        first, second = map(results.nearest_to_ideal, trials)
        n, of = (len(results.of(s, results.candidates)) for s in (sweep, reference))
        best = f"best trade-off of {sweep.title} ({_trial(results, first)})"
        pair = _Pair(
            first,
            second,
            f"{sweep.title} ({results.name(first)})",
            Subject(f"The {best}", f"the {best}"),
            f"that of {reference.title} ({_trial(results, second)})",
            f"{sweep.title} minus {reference.title}",
            (n, of),
            f"best of {how_many(n, noun)} of {sweep.title} and of {of} of {reference.title}",
        )
        pairs.append(pair)
    return pairs


def _trial(results: Results, record: TrialRecord) -> str:
    return f"{numbers_text([record])}, {record.config.group_label}{_breach(results, record)}"


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
    trials = {recipe: results.recipe_points(recipe, sweep) for recipe in results.recipes}
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
        f"{one} ({results.name(first)})",
        Subject(f"{begin} {at_best}", f"{one} {at_best}"),
        f"the best {other} ({results.name(second)}{capacities[1]}{breaches[1]})",
        f"{one} minus {other}",
        (n, of),
        f"best of {n} {one} and of {how_many(of, f'{other} {results.candidate_noun}')}",
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
    name, metric, *_ = role
    tasks = list(results.tasks(name))
    made = [
        (pair, results.items.compare(pair.first, pair.second, tasks, math.prod(pair.picked_from)))
        for pair in pairs
    ]
    known = [(pair, comparison) for pair, comparison in made if comparison is not None]
    adjusted = holm([comparison.p_value for _, comparison in known]) if len(known) > 1 else None
    over = f" over {len(known)} pairs (Holm)" if adjusted else ""
    found = []
    for place, (pair, comparison) in enumerate(known):
        each = comparison.with_p_value(adjusted[place]) if adjusted else comparison
        each = each.negated() if name == "retention" else each
        found.append((pair, _with_repeats(results, each, pair, metric)))
    if len(known) > _MOST_IN_PAIRS:
        return _many(found, role, over)
    return [_one(pair, each, role, over) for pair, each in found]


def _verb(comparison: Comparison, role: _RoleWords) -> str:
    name, _, verbs, _ = role
    is_better = (comparison.difference.estimate > 0) != (name == "retention")
    return verbs[0] if is_better else verbs[1]


def _one(pair: _Pair, comparison: Comparison, role: _RoleWords, over: str) -> Conclusion:
    name, _, _, where = role
    size, what = size_in_points(comparison), "forgetting" if name == "retention" else "accuracy"
    return state_difference(
        pair.subject,
        f"{_verb(comparison, role)} than {pair.other} by {size} points {where}",
        comparison,
        f"and {pair.other} cannot be distinguished {where}",
        pair.picked,
        f"the difference in {what}, {pair.minus}, one run of each,",
        over,
    )


def _many(
    found: Sequence[tuple[_Pair, Comparison]], role: _RoleWords, over: str
) -> list[Conclusion]:
    """Of many pairs one sentence for all that differ alike in one run, and one for the others.

    Those with repeats have a sentence of their own.
    """
    repeated: list[Conclusion] = []
    alike: list[tuple[_Pair, Comparison]] = []
    once: defaultdict[tuple[str, str], list[tuple[_Pair, Comparison]]] = defaultdict(list)
    for pair, each in found:
        if each.over_repeats is not None or each.diverged:
            repeated.append(_one(pair, each, role, over))
        elif each.runs_differ:
            once[_verb(each, role), pair.other].append((pair, each))
        else:
            alike.append((pair, each))
    conclusions = [
        Conclusion(
            f"In one run of each, every one of these {verb} than {other} {role[-1]}: "
            + in_list([f"{p.name} by {size_in_points(each)} points" for p, each in own])
            + "; repeats with other seeds would show whether it is so for other trainings, too "
            "(`confirm`).",
            _evidence(own, "highest", max(each.p_value for _, each in own), over),
            "open",
        )
        for (verb, other), own in once.items()
    ]
    if alike:
        names = in_list([pair.name for pair, _ in alike])
        lowest = min(each.p_value for _, each in alike)
        statement = f"{capitalized(role[-1])} items do not tell {alike[0][0].other} from {names}."
        evidence = _evidence(alike, "lowest", lowest, over)
        conclusions.append(Conclusion(statement, evidence, "open"))
    return [*repeated, *conclusions]


def _evidence(
    own: Sequence[tuple[_Pair, Comparison]], extreme: str, p_value: float, over: str
) -> str:
    """Such as `one run of each, n = 80; highest McNemar p = 0.0028 over 27 pairs (Holm)`."""
    _, first = own[0]
    picked = " (Bonferroni)" if any(each.picked_from > 1 for _, each in own) else ""
    tested = f"{extreme} {first.test} {p_text(p_value)}{picked}{over}"
    return f"one run of each, n = {first.difference.n}; {tested}"


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
