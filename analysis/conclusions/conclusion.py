"""A sentence of what the data say, with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from analysis.results.repeats import SIGNIFICANT
from analysis.shown_sweeps import Results
from analysis.sweeps import Sweep

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


def for_recipes(
    results: Results,
    sweep: Sweep,
    make: Callable[[Results, Sweep, str], list[Conclusion]],
) -> list[Conclusion]:
    """What is said of each recipe of a sweep that has a capacity, with its name if it has several.

    Those with too few data are left out if there are several, unless all have: then one stands for
    all, without its name.
    """
    configs = [record.config for record in results.of(sweep, results.search_trials)]
    titles = {each.recipe: each.recipe_title for each in configs if each.capacity is not None}
    found = {name: make(results, sweep, name) for name in results.recipes if name in titles}
    if len(found) < 2:
        return [conclusion for made in found.values() for conclusion in made]
    decided = [
        replace(conclusion, statement=f"{titles[name]}: {conclusion.statement}")
        for name, made in found.items()
        for conclusion in made
        if conclusion.verdict != "too few data"
    ]
    lacking = [(name, each) for name, made in found.items() for each in made]
    if decided or not lacking:
        return decided
    name, most = lacking[0]
    statement = most.statement.replace(f" {titles[name]} trials", " trials of any recipe")
    return [replace(most, statement=statement, evidence=f"{titles[name]}: {most.evidence}")]


def p_text(p_value: float) -> str:
    """Such as `p = 0.013`, `p < 0.001`."""
    number = p_number(p_value)
    return f"p {number}" if number.startswith("<") else f"p = {number}"


def p_number(p_value: float) -> str:
    """Such as `0.013`, `< 0.001` or, as verdicts ask whether it is below 0.05, `0.0496`."""
    if p_value < 0.001:
        return "< 0.001"
    digits = 2
    while float(f"{p_value:.{digits}g}") >= SIGNIFICANT > p_value:
        digits += 1
    return f"{p_value:.{digits}g}"
