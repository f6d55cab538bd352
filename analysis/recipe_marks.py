"""How recipes are marked on charts and figures."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.shown_sweeps import Results


@dataclass(frozen=True)
class Mark:
    """How a recipe, or one of several sweeps, is marked on charts.

    Attributes:
        symbol: of its points, as Plotly and the page's style call it.
        colour: of its points and curves.
    """

    symbol: str
    colour: str


ACCENT = "#d55e00"
"""Vermilion of Okabe and Ito (2008), of what is recommended; no recipe has it."""
# At least 3:1 against the paper in both schemes; the order keeps neighbours apart.
_COLOURS = (
    "#2f7fc1",
    "#a8842c",
    "#9b6bd1",
    "#2e9b5f",
    "#cf5a9c",
    "#1c959b",
    "#7f8790",
    "#7c9a3a",
)
_SYMBOLS = ("circle", "diamond", "square")
_MANY_RECIPES = 5


def recipe_marks(results: Results) -> dict[str, Mark]:
    """A mark for each recipe with complete trials; of the first 24 no two have both parts alike."""
    complete = {group.recipe for group in results.groups}
    recipes = [recipe for recipe in results.recipes if recipe in complete]
    return {
        recipe: Mark(_SYMBOLS[place % len(_SYMBOLS)], _COLOURS[place % len(_COLOURS)])
        for place, recipe in enumerate(recipes)
    }


def are_many(results: Results) -> bool:
    """Whether there are so many recipes that charts show less of each."""
    return len(recipe_marks(results)) > _MANY_RECIPES
