"""Which recipe learns the domain with the least forgetting, at an accuracy that all reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.matched_accuracy import MatchedRow, matched_rows
from analysis.report.cost import number
from analysis.results.formatting import end_in_points, in_list, metric_text, points
from analysis.shown_sweeps import Results
from trainables.metric_keys import IN_DOMAIN_ACC, OOD_ACC

_MOST_NAMED = 6


@dataclass(frozen=True)
class RecipeTable:
    """One row a recipe, the least forgetting first.

    Attributes:
        note: what the numbers are.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def recipe_table(results: Results) -> RecipeTable | None:
    """Recipes at matched accuracy; None with fewer than two to compare."""
    rows = matched_rows(results)
    if len(rows) < 2:
        return None
    titles = (
        "",
        "forgetting, points",
        "95 %",
        "in-domain",
        "OOD",
        "trial",
        "trained parameters",
        "tokens",
        "training s",
    )
    note = (
        f"Of the {results.candidate_noun}s of a recipe that reach {_accuracy(rows[0].level)} in "
        "the domain, the one that forgets least. That level is the best of the recipe that learned "
        "least, of those "
        "with at least half of the largest gain. Intervals are over items, not over trainings, and "
        "hold for all that the one was picked from."
    )
    return RecipeTable(titles, tuple(_cells(results, row) for row in rows), note)


def _cells(results: Results, row: MatchedRow) -> tuple[str, ...]:
    counts = (row.parameters, row.tokens, row.seconds)
    return (
        row.label,
        points(row.forgetting) if row.reaches else "not reached",
        _interval(row) if row.reaches else "",
        _accuracy(row.in_domain),
        metric_text(OOD_ACC, row.ood),
        f"{results.name(row.trial).removeprefix('trial ')} (of {row.picked_from})",
        *("" if count is None else number(count) for count in counts),
    )


def _accuracy(value: float) -> str:
    return metric_text(IN_DOMAIN_ACC, value)


def _interval(row: MatchedRow) -> str:
    if row.interval is None:
        return ""
    return f"{end_in_points(row.interval.low)} to {end_in_points(row.interval.high)}"


def recipe_answer(results: Results) -> str | None:
    """The recipe with the least forgetting, and from which others items tell it apart.

    None with fewer than two to compare.
    """
    rows = matched_rows(results)
    reaching = [row for row in rows if row.reaches]
    if len(reaching) < 2:
        return None
    first = reaching[0]
    least = [row for row in reaching if row.forgetting == first.forgetting]
    others = reaching[len(least) :]
    interval = f" (95 %: {_interval(first)})" if first.interval and len(least) == 1 else ""
    found = (
        f"At {_accuracy(first.level)} in the domain {_listed([row.label for row in least])} "
        f"{'forgets' if len(least) == 1 else 'forget'} least, "
        f"{points(first.forgetting)} points{interval}."
    )
    worse = [row.label for row in others if row.forgets_more]
    undecided = [row.label for row in others if not row.forgets_more]
    if worse:
        forget = "forgets" if len(worse) == 1 else "forget"
        found += f" On the same items {_listed(worse)} {forget} more."
    them = "it" if len(least) == 1 else first.label
    if undecided:
        found += f" Items do not decide between {them} and {_listed(undecided)}."
    if below := [row.label for row in rows if not row.reaches]:
        found += f" That accuracy is not reached by {_listed(below)}."
    return found


def _listed(names: Sequence[str]) -> str:
    """Such as `A, B and 4 more`."""
    shown, more = names[:_MOST_NAMED], len(names) - _MOST_NAMED
    return in_list([*shown, f"{more} more"] if more > 0 else shown)
