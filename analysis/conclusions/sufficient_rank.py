"""The conclusion on the rank: the smallest one beyond which the domain is learned no better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from analysis.conclusions.conclusion import Conclusion
from analysis.results.formatting import how_many
from analysis.results.item_metrics import rounding
from analysis.results.repeats import LEVEL, diverged
from analysis.results.sample_size import (
    FEWEST_OF_RANK,
    FEWEST_RANKS,
    NEGLIGIBLE,
    level_of_rank,
)
from analysis.shown_sweeps import Group, Results
from analysis.stats.intervals import difference_over_seeds, upper_bound
from analysis.sweeps import Sweep
from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.records.schema import TrialRecord

_ROUNDING = 1e-9  # of a difference of two accuracies


@dataclass(frozen=True)
class _Candidate:
    """A rank below the highest, compared with all above it.

    Attributes:
        most: upper bound on what the best trial of any of these gains over its best.
        items: number that they are compared on.
        is_tried: whether it and all above it have `FEWEST_OF_RANK` trials.
        over_seeds: the highest end of intervals over seeds of the same; None without one for each.
            Its own run, which was picked, does not stand for its repeats.
        is_refuted: whether its best diverged with another seed, or a higher rank's best gains more
            than `NEGLIGIBLE` over it in the means over repeats, where both have any.
    """

    rank: int
    most: float
    items: int
    is_tried: bool
    over_seeds: float | None
    is_refuted: bool

    @property
    def is_repeated(self) -> bool:
        """Whether repeats bound the difference by `NEGLIGIBLE`, too."""
        return self.over_seeds is not None and self.over_seeds <= NEGLIGIBLE + _ROUNDING


def rank_that_suffices(results: Results, sweep: Sweep) -> list[Conclusion]:
    """The smallest rank whose best trial is at most `NEGLIGIBLE` worse than every higher rank's.

    The best is that in the domain, of trials that keep the constraints if the rank has any. Each of
    these ranks needs `FEWEST_OF_RANK` trials. Shown if repeats with other seeds bound the
    difference as well.
    """
    if not results.tasks("in_domain"):
        return []
    groups = {group.rank or 0: group for group in results.lora_groups(sweep)}
    if len(groups) < FEWEST_RANKS:
        statement = "Too few ranks to say which one suffices."
        text = f"{how_many(len(groups), 'rank')} with a complete trial"
        return [Conclusion(statement, text, "too few data")]
    best = {rank: _best_in_domain(results, group) for rank, group in groups.items()}
    candidates = list(_candidates(results, groups, best))
    if not candidates:
        return []
    highest, stopped = max(groups), results.more_stopped(sweep)
    items = candidates[0].items
    within = [candidate for candidate in candidates if candidate.most <= NEGLIGIBLE]
    if found := next((c for c in within if c.is_tried and not c.is_refuted), None):
        most = max(found.most, found.over_seeds or 0.0) if found.is_repeated else found.most
        claim = (
            f"rank {found.rank} suffices in the domain: the best trial of no higher rank gains "
            f"more than {_up(most)} points over its best"
        )
        evidence = (
            f"simultaneous {100 * LEVEL:g} % upper bound, n = {items} items, "
            f"{_bests(results, groups, best)}, picked on these items{stopped}"
        )
        if found.over_seeds is not None:
            evidence += f"; over seeds at most {_up(found.over_seeds)} points"
        if found.is_repeated:
            return [Conclusion(f"{claim.capitalize()}.", evidence)]
        would = "repeats of these with other seeds would show whether it does"
        return [Conclusion(f"In one run of each, {claim}; {would}.", evidence, "open")]
    lacking = ""
    if not all(candidate.is_tried for candidate in within):
        lacking = f"; one that suffices and all above it need {FEWEST_OF_RANK} each"
    if refuted := [str(candidate.rank) for candidate in within if candidate.is_refuted]:
        lacking += f"; repeats with other seeds refute rank {', '.join(refuted)}"
    return [
        Conclusion(
            f"No rank below {highest} is shown to suffice in the domain to within "
            f"{100 * NEGLIGIBLE:g} points.",
            f"simultaneous {100 * LEVEL:g} % bounds, n = {items} items, "
            f"{_bests(results, groups, best)}{lacking}{stopped}",
            "open",
        )
    ]


def _candidates(
    results: Results, groups: Mapping[int, Group], best: Mapping[int, TrialRecord]
) -> Iterator[_Candidate]:
    """All ranks but the highest, in order; none if an item was answered by only some trials.

    For one rank, all higher ones must be shown to gain no more: an intersection-union test, which
    needs no correction (Berger 1982). Bonferroni's is applied over the candidate ranks and the
    trials that a candidate's best was picked from.
    """
    tasks = list(results.tasks("in_domain"))
    *ranks, _ = best
    repeated = {rank: results.repeated(best[rank], IN_DOMAIN_ACC) for rank in best}
    means = {rank: fmean(values) for rank, values in repeated.items() if values}
    runs = {rank: repeated[rank] or [best[rank].metric(IN_DOMAIN_ACC) or 0.0] for rank in best}
    rounded = rounding(IN_DOMAIN_ACC, results.base.scores)
    most = NEGLIGIBLE + _ROUNDING
    for rank in ranks:
        seeds = [difference_over_seeds(runs[r], runs[rank], rounded) for r in best if r > rank]
        higher = [results.items.differences(best[r], best[rank], tasks) for r in best if r > rank]
        gains = [gain for gain in higher if gain is not None]
        if len(gains) < len(higher):
            return
        level = level_of_rank(len(groups), groups[rank].picked_from)
        yield _Candidate(
            rank,
            most=max(upper_bound(*gain, level=level) for gain in gains),
            items=sum(map(len, gains[0][0])),
            is_tried=all(groups[r].is_tried for r in best if r >= rank),
            over_seeds=max(over.high for over in seeds if over)
            if repeated[rank] and all(seeds)
            else None,
            is_refuted=bool(diverged(results.repeats(best[rank])))
            or any(means[r] - means.get(rank, 1.0) > most for r in means if r > rank),
        )


def _up(share: float) -> str:
    """Points, rounded up and at least 0."""
    return f"{max(0.0, math.ceil(1000 * share - _ROUNDING) / 10):.1f}"


def _best_in_domain(results: Results, group: Group) -> TrialRecord:
    taken = [record for record in group.trials if results.can_be_taken(record)]
    kept = taken or [record for record in group.trials if results.keeps_constraints(record)]
    return max(kept or group.trials, key=lambda r: (r.metric(IN_DOMAIN_ACC) or 0.0, -r.number))


def _bests(results: Results, groups: Mapping[int, Group], best: Mapping[int, TrialRecord]) -> str:
    """Such as `best of 4, 5, 1 trials of ranks 4, 16, 64`; whose best breaks a constraint, too."""
    counts = ", ".join(str(group.picked_from) for group in groups.values())
    text = f"best of {counts} trials of ranks {', '.join(map(str, groups))}"
    broken = [str(rank) for rank in best if not results.keeps_constraints(best[rank])]
    return f"{text} (none of rank {', '.join(broken)} keeps every constraint)" if broken else text
