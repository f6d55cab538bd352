"""Charts as plain Plotly JSON, and what they share: colours, axes, hover texts.

Colours that follow the page's light or dark scheme are written `@ink`, `@muted`, `@line` and
`@paper`; the page substitutes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from plotly.colors import make_colorscale

from analysis.recipe_marks import Mark, recipe_marks
from analysis.results.formatting import metric_name, metric_text, setting_in_full
from analysis.shown_sweeps import Group, Results
from analysis.sweeps import Sweep
from trainables.methods.base import Capacity
from trainables.records.schema import TrialRecord

Trace = dict[str, Any]

_BLUES = ("#f3f1ea", "#c6dbe4", "#73a9c9", "#2b6f9f", "#0b3a63")
_BLUE_TO_VERMILION = ("#1d6996", "#8bbcd8", "#f3f1ea", "#f0a36b", "#b03a00")


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        key: unique on the page.
        says: text alternative for readers who cannot see it.
        height: pixels.
    """

    key: str
    title: str
    says: str
    data: list[Trace]
    layout: dict[str, Any]
    height: int = 330

    def json(self) -> dict[str, Any]:
        """Plotly's JSON, with non-finite numbers as null; a `Figure` has the legend."""
        layout = {**self.layout, "height": self.height, "showlegend": False}
        chart: dict[str, Any] = finite({"data": self.data, "layout": layout})
        return chart


@dataclass(frozen=True)
class Figure:
    """Charts side by side under one caption, stacked if there is no room.

    Attributes:
        columns: the most charts in a row.
        legend: shared by all the charts.
    """

    caption: str
    charts: tuple[Chart, ...]
    columns: int = 1
    legend: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Key:
    """One entry of a legend.

    Attributes:
        shape: `dot`, `diamond`, `star`, `ring`, `target`, `line`, or a sweep's symbol.
    """

    name: str
    colour: str
    shape: str


def finite(value: Any) -> Any:
    """JSON's values, with null for the numbers that it has not: NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def axis(title: str, **layout: Any) -> dict[str, Any]:
    """An axis with a title, which may hold names of others' metrics: Plotly reads markup."""
    return {"title": {"text": escape(title)}, **layout}


def hover(results: Results, record: TrialRecord) -> str:
    """The hover text of a trial's point."""
    lines = [f"<b>{escape(results.name(record))}</b>", escape(setting_in_full(record))]
    lines += [
        f"{escape(metric_name(metric))} {metric_text(metric, record.metric(metric))}"
        for metric in results.judged_by
        if record.metric(metric) is not None
    ]
    return "<br>".join(lines)


def heatmap(
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    diverging: bool = False,
    texts: Sequence[Sequence[str]] | None,
    hovers: Sequence[Sequence[str]] | None = None,
) -> Trace:
    """A heat map with one value per cell; None leaves a cell empty."""
    found = [abs(value) for row in values for value in row if value is not None]
    most = max(found, default=0.0) or 1.0
    scale = (
        {"colorscale": make_colorscale(_BLUE_TO_VERMILION), "zmid": 0, "zmin": -most, "zmax": most}
        if diverging
        else {"colorscale": make_colorscale(_BLUES)}
    )
    trace: Trace = {
        "type": "heatmap",
        "x": [*map(escape, columns)],
        "y": [*map(escape, rows)],
        "z": [list(row) for row in values],
        "xgap": 2,
        "ygap": 2,
        "showscale": texts is None,
        "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 0.9},
        "hovertemplate": "%{y}, %{x}: %{z:.3f}<extra></extra>",
        **scale,
    }
    if texts:
        trace |= {"text": [list(row) for row in texts], "texttemplate": "%{text}"}
    if hovers:
        trace |= {"hovertext": [list(row) for row in hovers]}
        trace["hovertemplate"] = "%{hovertext}<extra></extra>"
    return trace


_MARKS = (
    Mark("circle", "#2b6f9f"),
    Mark("square", "#009e73"),
    Mark("triangle-up", "#cc79a7"),
    Mark("cross", "#8c6d1f"),
    Mark("x", "#56b4e9"),
    Mark("triangle-down", "#e69f00"),
)
_SMALLEST, _LARGEST, _USUAL = 7.0, 15.0, 10.0
"""Pixels of points by capacity, and of those without one."""
_MOST_GROUPS = 12


def recipe_keys(results: Results, shape: str | None = None) -> list[Key]:
    """The legend of recipes, as dots if symbols stand for sweeps, or in a shape for all."""
    titles = {group.recipe: group.title for group in results.groups}
    shape = shape or ("dot" if len(results.sweeps) > 1 else None)
    return [
        Key(titles[recipe], mark.colour, shape or mark.symbol)
        for recipe, mark in recipe_marks(results).items()
    ]


def capacity_sizes(results: Results) -> dict[tuple[str, Capacity | None], float]:
    """Sizes of points by recipe and capacity: they rise with the capacity within a recipe."""
    own: dict[str, list[Capacity | None]] = {}
    for group in results.groups:
        if group.capacity not in own.setdefault(group.recipe, []):
            own[group.recipe].append(group.capacity)
    return {
        (recipe, capacity): _USUAL
        if len(capacities) == 1
        else _SMALLEST + (_LARGEST - _SMALLEST) * place / (len(capacities) - 1)
        for recipe, capacities in own.items()
        for place, capacity in enumerate(capacities)
    }


def sweep_mark(results: Results, sweep: Sweep) -> Mark:
    """A sweep's mark; from the seventh on they come again."""
    return _MARKS[results.sweeps.index(sweep) % len(_MARKS)]


def group_mark(results: Results, group: Group) -> Mark:
    """The recipe's mark; of several sweeps with the sweep's symbol."""
    mark = recipe_marks(results)[group.recipe]
    if len(results.sweeps) == 1:
        return mark
    return Mark(sweep_mark(results, group.sweep).symbol, mark.colour)


def marked(results: Results, sweep: Sweep, line: Trace) -> Trace:
    """A line with the sweep's symbols, if there are several, in the line's colour."""
    if len(results.sweeps) == 1:
        return line
    marker = {"symbol": sweep_mark(results, sweep).symbol, "maxdisplayed": 8}
    return line | {"mode": "lines+markers", "marker": marker}


def sweep_keys(
    results: Results, colour: str | None = None, of: Sequence[Sweep] | None = None
) -> list[Key]:
    """The legend of several sweeps, or of those shown; empty if one sweep was read.

    They are in their curves' colours by default.
    """
    if len(results.sweeps) == 1:
        return []
    shown = results.sweeps if of is None else of
    marks = [(sweep.title, sweep_mark(results, sweep)) for sweep in shown]
    return [Key(title, colour or mark.colour, mark.symbol) for title, mark in marks]


def listed(results: Results, texts: Sequence[tuple[Sweep, str]]) -> str:
    """One text or, if there are several sweeps, such as `12.5 % (first), 30.1 % (second)`."""
    if len(results.sweeps) == 1:
        return texts[0][1]
    return ", ".join(f"{text} ({sweep.title})" for sweep, text in texts)


def point_keys(results: Results) -> list[Key]:
    """The legend of points: recipes and, if there are several, sweeps."""
    return [*recipe_keys(results), *sweep_keys(results, "@ink")]


def point_marker(results: Results, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Colours by recipe, sizes by capacity, symbols by recipe or, of several sweeps, by sweep."""
    marks, sizes = recipe_marks(results), capacity_sizes(results)
    own = [marks[record.config.recipe] for record in records]
    symbols = [mark.symbol for mark in own]
    if len(results.sweeps) > 1:
        symbols = [sweep_mark(results, results.sweep(record)).symbol for record in records]
    return {
        "color": [mark.colour for mark in own],
        "symbol": symbols,
        "size": [sizes[record.config.recipe, record.config.capacity] for record in records],
    }


def point_trace(
    results: Results,
    records: Sequence[TrialRecord],
    x: Sequence[float | None],
    y: Sequence[float | None],
    marker: dict[str, Any] | None = None,
) -> Trace:
    """Trials as points with hover texts, marked as `point_marker` unless given."""
    edge = {"color": "@paper", "width": 1}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "text": [hover(results, record) for record in records],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"line": edge, **(marker or point_marker(results, records))},
    }


def leading_groups(results: Results) -> list[Group]:
    """All groups or, of many, the best of each recipe and sweep."""
    if len(results.groups) <= _MOST_GROUPS:
        return results.groups
    own: dict[tuple[str, str], list[Group]] = {}
    for group in results.groups:
        own.setdefault((group.recipe, group.sweep.title), []).append(group)
    best = [results.nearest_to_ideal([group.best for group in groups]) for groups in own.values()]
    return [group for group in results.groups if group.best in best]


def groups_in_words(results: Results) -> str:
    """What there is one of `leading_groups` for."""
    return "recipe" if len(results.groups) > _MOST_GROUPS else "recipe and capacity"
