"""The conclusion on the capacity: the smallest beyond which the domain is learned no better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from analysis.conclusions.conclusion import Conclusion, for_recipes
from analysis.results.formatting import capitalized
from analysis.results.item_metrics import rounding
from analysis.results.repeats import LEVEL, diverged
from analysis.results.sample_size import (
    FEWEST_CAPACITIES,
    FEWEST_OF_CAPACITY,
    NEGLIGIBLE,
    level_of_capacity,
)
from analysis.shown_sweeps import Group, Results
from analysis.stats.intervals import difference_over_seeds, upper_bound
from analysis.sweeps import Sweep
from trainables.methods.base import Capacity
from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.records.schema import TrialRecord

_ROUNDING = 1e-9  # of a difference of two accuracies


@dataclass(frozen=True)
class _Candidate:
    """A capacity below the largest, compared with all above it.

    Attributes:
        most: upper bound on what the best trial of any of these gains over its best.
        items: number that they are compared on.
        is_tried: whether it and all above it have `FEWEST_OF_CAPACITY` trials.
        over_seeds: the highest end of intervals over seeds of the same; None without one for each.
            Its own run, which was picked, does not stand for its repeats.
        is_refuted: whether its best diverged with another seed, or a larger one's best gains more
            than `NEGLIGIBLE` over it in the means over repeats, where both have any.
    """

    capacity: Capacity
    most: float
    items: int
    is_tried: bool
    over_seeds: float | None
    is_refuted: bool

    @property
    def is_repeated(self) -> bool:
        """Whether repeats bound the difference by `NEGLIGIBLE`, too."""
        return self.over_seeds is not None and self.over_seeds <= NEGLIGIBLE + _ROUNDING


def capacity_that_suffices(results: Results, sweep: Sweep) -> list[Conclusion]:
    """Of each recipe, the smallest capacity whose best trial every larger one's beats by little.

    By at most `NEGLIGIBLE`. The best is that in the domain, of trials that keep the constraints if
    the capacity has any, all as training left them, at strength 1. Each needs `FEWEST_OF_CAPACITY`
    trials. Shown if repeats with other seeds bound the difference as well.
    """
    return for_recipes(results, sweep, _that_suffices) if results.tasks("in_domain") else []


def _that_suffices(results: Results, sweep: Sweep, recipe: str) -> list[Conclusion]:
    groups = {group.capacity: group for group in results.sized(recipe, sweep) if group.capacity}
    if len(groups) < FEWEST_CAPACITIES:
        name = next((capacity.name for capacity in groups), "capacity")
        statement = f"Too few {_plural(name)} to say which one suffices."
        count = f"{len(groups)} {name if len(groups) == 1 else _plural(name)}"
        return [Conclusion(statement, f"{count} with a complete trial", "too few data")]
    best = {capacity: _best_in_domain(results, group) for capacity, group in groups.items()}
    candidates = list(_candidates(results, groups, best))
    if not candidates:
        return []
    largest, stopped = [*groups][-1], results.more_stopped(sweep, recipe)
    falls = largest.order < 0
    items = candidates[0].items
    within = [candidate for candidate in candidates if candidate.most <= NEGLIGIBLE]
    if found := next((c for c in within if c.is_tried and not c.is_refuted), None):
        most = max(found.most, found.over_seeds or 0.0) if found.is_repeated else found.most
        claim = (
            f"{found.capacity} suffices in the domain: the best trial of no "
            f"{'lower' if falls else 'higher'} {largest.name} gains "
            f"more than {_up(most)} points over its best"
        )
        evidence = (
            f"simultaneous {100 * LEVEL:g} % upper bound, n = {items} items, "
            f"{_bests(results, groups, best)}, picked on these items{stopped}"
        )
        if found.over_seeds is not None:
            evidence += f"; over seeds at most {_up(found.over_seeds)} points"
        if found.is_repeated:
            return [Conclusion(f"{capitalized(claim)}.", evidence)]
        would = "repeats of these with other seeds would show whether it does"
        return [Conclusion(f"In one run of each, {claim}; {would}.", evidence, "open")]
    lacking = ""
    if not all(candidate.is_tried for candidate in within):
        lacking = f"; one that suffices and all above it need {FEWEST_OF_CAPACITY} each"
    if refuted := [str(each.capacity.number) for each in within if each.is_refuted]:
        lacking += f"; repeats with other seeds refute {largest.name} {', '.join(refuted)}"
    return [
        Conclusion(
            f"No {largest.name} {'above' if falls else 'below'} {largest.number} is shown to "
            f"suffice in the domain to within {100 * NEGLIGIBLE:g} points.",
            f"simultaneous {100 * LEVEL:g} % bounds, n = {items} items, "
            f"{_bests(results, groups, best)}{lacking}{stopped}",
            "open",
        )
    ]


def _plural(name: str) -> str:
    return "capacities" if name == "capacity" else f"{name}s"


def _candidates(
    results: Results, groups: Mapping[Capacity, Group], best: Mapping[Capacity, TrialRecord]
) -> Iterator[_Candidate]:
    """All capacities but the largest, in order; none if only some trials answered an item.

    For one, all larger ones must be shown to gain no more: an intersection-union test, which
    needs no correction (Berger 1982). Bonferroni's is applied over the candidates and the
    trials that a candidate's best was picked from.
    """
    tasks = list(results.tasks("in_domain"))
    *below, _ = best
    repeated = {each: results.repeated(best[each], IN_DOMAIN_ACC) for each in best}
    means = {each: fmean(values) for each, values in repeated.items() if values}
    runs = {each: repeated[each] or [best[each].metric(IN_DOMAIN_ACC) or 0.0] for each in best}
    rounded = rounding(IN_DOMAIN_ACC, results.base.scores)
    most = NEGLIGIBLE + _ROUNDING
    for own in below:
        larger = [each for each in best if each.order > own.order]
        seeds = [difference_over_seeds(runs[each], runs[own], rounded) for each in larger]
        found = [results.items.differences(best[each], best[own], tasks) for each in larger]
        gains = [gain for gain in found if gain is not None]
        if len(gains) < len(found):
            return
        level = level_of_capacity(len(groups), groups[own].trained)
        yield _Candidate(
            own,
            most=max(upper_bound(*gain, level=level) for gain in gains),
            items=sum(map(len, gains[0][0])),
            is_tried=all(groups[each].is_tried for each in (own, *larger)),
            over_seeds=max(over.high for over in seeds if over)
            if repeated[own] and all(seeds)
            else None,
            is_refuted=bool(diverged(results.repeats(best[own])))
            or any(means[r] - means.get(own, 1.0) > most for r in means if r in larger),
        )


def _up(share: float) -> str:
    """Points, rounded up and at least 0."""
    return f"{max(0.0, math.ceil(1000 * share - _ROUNDING) / 10):.1f}"


def _best_in_domain(results: Results, group: Group) -> TrialRecord:
    taken = [record for record in group.trials if results.can_be_taken(record)]
    kept = taken or [record for record in group.trials if results.keeps_constraints(record)]
    return max(kept or group.trials, key=lambda r: (r.metric(IN_DOMAIN_ACC) or 0.0, -r.number))


def _bests(
    results: Results, groups: Mapping[Capacity, Group], best: Mapping[Capacity, TrialRecord]
) -> str:
    """Such as `best of 4, 5, 1 trials of ranks 4, 16, 64`; whose best breaks a constraint, too."""
    counts = ", ".join(str(group.trained) for group in groups.values())
    name = next(iter(groups)).name
    text = f"best of {counts} trials of {_plural(name)} {_numbers(groups)}"
    broken = [each for each in best if not results.keeps_constraints(best[each])]
    if not broken:
        return text
    return f"{text} (none of {name} {_numbers(broken)} keeps every constraint)"


def _numbers(capacities: Iterable[Capacity]) -> str:
    return ", ".join(str(each.number) for each in capacities)
