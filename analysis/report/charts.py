"""Charts as plain Plotly JSON, and what they share: colours, axes, hover texts.

Colours that follow the page's light or dark scheme are written `@ink`, `@muted`, `@line`,
`@paper` and, of a rank, `@rank-4`; the page substitutes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from plotly.colors import make_colorscale, sample_colorscale

from analysis.results.formatting import metric_name, metric_text, setting_in_full
from analysis.shown_sweeps import Group, Results
from analysis.sweeps import Sweep
from trainables.records.schema import TrialRecord

Trace = dict[str, Any]

FULL = "#d55e00"
"""Vermilion of Okabe and Ito (2008); distinct from all ranks for every kind of colour vision."""
_ON_LIGHT = ("#24000c", "#33208c", "#0a4cb4", "#1078a4", "#00a088")
_ON_DARK = ("#b5179e", "#9468f5", "#62a8f5", "#55dce6", "#c8f7c0")
# Of ranks: 3:1 against the paper at both ends, which leaves one ramp for both schemes no room.
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


def rank_colours(results: Results) -> dict[int, str]:
    """A colour for each rank in the search's trials, from dark to light; see `rank_style`."""
    ranks = sorted({r.rank for r in results.search_trials if r.rank is not None})
    return {rank: f"@rank-{rank}" for rank in ranks}


def rank_style(results: Results) -> str:
    """What the colours of ranks are on light and on dark paper, as CSS."""
    light, dark = (_shades(results, ramp) for ramp in (_ON_LIGHT, _ON_DARK))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n"


def _shades(results: Results, ramp: Sequence[str]) -> str:
    names = rank_colours(results).values()
    places = [position / max(len(names) - 1, 1) for position in range(len(names))]
    shades = zip(names, sample_colorscale(ramp, places), strict=True)
    return f":root {{ {' '.join(f'--{name[1:]}: {shade};' for name, shade in shades)} }}"


def pick_colour(trained: Group | TrialRecord, colours: dict[int, str]) -> str:
    """A group's or a trial's colour on every chart."""
    return FULL if trained.rank is None else colours[trained.rank]


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


def rank_keys(results: Results, shape: str = "dot", full: str = "diamond") -> list[Key]:
    """The legend of ranks and full fine-tuning, for those with complete trials."""
    colours, ranks = rank_colours(results), {group.rank for group in results.groups}
    keys = [Key(f"rank {r}", colour, shape) for r, colour in colours.items() if r in ranks]
    if None in ranks:
        keys.append(Key("full fine-tuning", FULL, full))
    return keys


@dataclass(frozen=True)
class Mark:
    """How a sweep is marked on the charts of several.

    Attributes:
        symbol: of its points, as Plotly and the page's style call it.
        colour: of its curves, where colours do not stand for ranks.
    """

    symbol: str
    colour: str


_MARKS = (
    Mark("circle", "#2b6f9f"),
    Mark("square", "#009e73"),
    Mark("triangle-up", "#cc79a7"),
    Mark("cross", "#8c6d1f"),
    Mark("x", "#56b4e9"),
    Mark("triangle-down", "#e69f00"),
)


def sweep_mark(results: Results, sweep: Sweep) -> Mark:
    """A sweep's mark; from the seventh on they come again."""
    return _MARKS[results.sweeps.index(sweep) % len(_MARKS)]


def marked(results: Results, sweep: Sweep, line: Trace) -> Trace:
    """A line with the sweep's symbols, if there are several, in the line's colour."""
    if len(results.sweeps) == 1:
        return line
    marker = {"symbol": sweep_mark(results, sweep).symbol, "maxdisplayed": 8}
    return line | {"mode": "lines+markers", "marker": marker}


def symbols(results: Results, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """The part of a marker that tells trials of several sweeps apart; empty for one sweep."""
    if len(results.sweeps) == 1:
        return {}
    return {"symbol": [sweep_mark(results, results.sweep(record)).symbol for record in records]}


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
    """The legend of points: ranks and full fine-tuning and, if there are several, sweeps."""
    if len(results.sweeps) == 1:
        return rank_keys(results)
    return [*rank_keys(results, full="dot"), *sweep_keys(results, "@ink")]


def point_trace(
    results: Results,
    records: Sequence[TrialRecord],
    x: Sequence[float | None],
    y: Sequence[float | None],
    marker: dict[str, Any],
) -> Trace:
    """Trials as points with hover texts."""
    edge = {"color": "@paper", "width": 1}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "text": [hover(results, record) for record in records],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": 10, "line": edge, **marker},
    }
