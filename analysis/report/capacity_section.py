"""Effects of capacity and learning rate: curves, heat maps, learning rate x scale."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np

from analysis.capacity_axis import CapacityAxis, capacity_axis
from analysis.recipe_marks import Mark, are_many
from analysis.report.charts import (
    Chart,
    Figure,
    Trace,
    axis,
    group_mark,
    heatmap,
    hover,
    point_keys,
    point_trace,
)
from analysis.results.formatting import NAMES, axis_title, how_many, metric_text
from analysis.results.sample_size import FEWEST_OF_CAPACITY
from analysis.shown_sweeps import Group, Results
from analysis.stats.intervals import error_bars
from analysis.sweeps import bases
from trainables.metric_keys import FORGETTING_MEAN, OOD_ACC
from trainables.records.schema import TrialRecord

_MOST_RATES = 7
_MOST_ROWS = 16
"""Of a heat map; of more groups those of one recipe share a row."""


def capacity_figure(results: Results) -> Figure | None:
    """The best of each recipe by capacity, what has none as a band; None if none has any."""
    across = capacity_axis(results)
    if across is None:
        return None
    metrics = [results.gain, OOD_ACC, FORGETTING_MEAN]
    if are_many(results):
        metrics.remove(OOD_ACC)
    drawn = {metric: _groups_with(results, metric) for metric in metrics}
    charts = [_chart(results, across, *shown) for shown in drawn.items() if shown[1]]
    joined = "Lines: the best trade-off of each recipe at each capacity"
    if not all(group.is_tried for group in results.groups):
        joined += (
            f" of at least {FEWEST_OF_CAPACITY} trials; hollow and not joined: that of fewer, "
            "which tells more of their learning rates than of the capacity"
        )
    dots = (
        ""
        if are_many(results)
        else f" Dots: every complete trial, at all learning rates{results.more_stopped()}."
    )
    caption = (
        f"{joined} (of the recommended trial's, that trial: repeats may have decided). Bars: the "
        "95 % interval over items, not over trainings, that holds for all trials it was picked "
        f"from: the best of more is better by chance alone.{dots}"
        f"{_bands_in_words(results, across)} Dotted: the base."
    )
    return Figure(caption, tuple(charts), 2 if len(charts) == 2 else 3, tuple(point_keys(results)))


def _groups_with(results: Results, metric: str) -> list[Group]:
    return [group for group in results.groups if group.best.metric(metric) is not None]


def _bands_in_words(results: Results, across: CapacityAxis) -> str:
    bands = [group for group in results.groups if across.place(group.best) is None]
    if not bands:
        return ""
    bests = [f"{group.label} at its best trade-off ({results.name(group.best)})" for group in bands]
    has, is_ = ("have", "Bands are") if len(bands) > 1 else ("has", "The band is")
    return f" {is_} {', '.join(bests)}, which {has} no {across.title.partition(',')[0]}."


def _chart(results: Results, across: CapacityAxis, metric: str, groups: Sequence[Group]) -> Chart:
    curves: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if across.place(group.best) is not None:
            curves.setdefault((group.sweep.title, group.recipe), []).append(group)
    ticks = {"tickvals": [*across.ticks], "ticktext": _lines(across.ticks.values())}
    text = ", ".join(
        f"{group.label} {metric_text(metric, group.best.metric(metric))}"
        for own in curves.values()
        for group in own
    )
    return Chart(
        f"capacity-{metric.replace('/', '-')}",
        NAMES[metric],
        f"{NAMES[metric]} of the best trade-off by {across.title}: {text}.",
        [trace for own in curves.values() for trace in _curve(results, across, own, metric)],
        {
            "xaxis": axis(across.title, type="log", **(ticks if across.ticks else {})),
            "yaxis": axis(axis_title(metric)),
            **_references(results, across, metric),
        },
    )


def _lines(texts: Iterable[str]) -> list[str]:
    return [text.replace("\n", "<br>") for text in texts]


def _curve(
    results: Results, across: CapacityAxis, groups: Sequence[Group], metric: str
) -> list[Trace]:
    """A recipe's trials as dots, and a line through the best of each group tried often enough."""
    mark = group_mark(results, groups[0])
    trials = [record for group in groups for record in group.trials]
    dots: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [across.place(record) for record in trials],
        "y": [record.metric(metric) for record in trials],
        "text": [hover(results, record) for record in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": mark.colour, "size": 6, "opacity": 0.4, "symbol": mark.symbol},
    }
    tried = [group for group in groups if group.is_tried]
    line = _bests(results, across, tried, metric, mark) | {
        "mode": "lines+markers",
        "line": {"color": mark.colour, "width": 2.5},
    }
    untried = [group for group in groups if not group.is_tried]
    apart = _bests(results, across, untried, metric, mark)
    apart["marker"] |= {"symbol": f"{mark.symbol}-open"}
    shown = [trace for trace in (line, apart) if trace["x"]]
    return shown if are_many(results) else [dots, *shown]


def _bests(
    results: Results, across: CapacityAxis, groups: Sequence[Group], metric: str, mark: Mark
) -> Trace:
    """The best of each group, with its interval."""
    intervals = [results.items.interval(group.best, metric, group.picked_from) for group in groups]
    values = [group.best.metric(metric) or 0.0 for group in groups]
    below, above = error_bars(values, intervals)
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [across.place(group.best) for group in groups],
        "y": values,
        "text": [_hover_of_best(results, group) for group in groups],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": mark.colour, "size": 8, "symbol": mark.symbol},
        "error_y": {**bars, "color": mark.colour, "thickness": 1.4, "width": 4},
    }


def _hover_of_best(results: Results, group: Group) -> str:
    count = group.picked_from
    text = f"{hover(results, group.best)}<br>best of {how_many(count, results.candidate_noun)}"
    return text if results.keeps_constraints(group.best) else f"{text}, breaks a constraint"


def _references(results: Results, across: CapacityAxis, metric: str) -> dict[str, list[Trace]]:
    """A band for each group that has no place on the axis, and a line for each base."""
    shapes: list[Trace] = []
    notes: list[Trace] = []
    line_across = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "layer": "below"}
    for group in _groups_with(results, metric):
        if across.place(group.best) is not None:
            continue
        value, colour = group.best.metric(metric) or 0.0, group_mark(results, group).colour
        interval = results.items.interval(group.best, metric, group.picked_from)
        if interval:
            band = {"type": "rect", "y0": interval.low, "y1": interval.high, "line": {"width": 0}}
            shapes.append({**line_across, **band, "fillcolor": colour, "opacity": 0.16})
        line = {"color": colour, "width": 1.6}
        shapes.append({**line_across, "type": "line", "y0": value, "y1": value, "line": line})
        notes.append(_note(group.label, value, colour, is_base=False))
    for (base,), name in bases(results.sweeps, metric).items():
        dotted = {"color": "@muted", "width": 1.2, "dash": "dot"}
        shapes.append({**line_across, "type": "line", "y0": base, "y1": base, "line": dotted})
        notes.append(_note(name, base, "@muted", is_base=True))
    return {"shapes": shapes, "annotations": notes}


def _note(text: str, value: float, colour: str, is_base: bool) -> Trace:
    """A label: above its line on the right or, of a base, below it on the left."""
    x = {"x": 0, "xanchor": "left"} if is_base else {"x": 1, "xanchor": "right"}
    place = {"xref": "paper", **x, "yref": "y", "y": value, "showarrow": False}
    anchor = {"yanchor": "top" if is_base else "bottom"}
    return {**place, **anchor, "text": escape(text), "font": {"size": 11, "color": colour}}


def _measured(results: Results, trials: Sequence[TrialRecord]) -> list[str]:
    """Which of gain and forgetting any of the trials has."""
    metrics = (results.gain, FORGETTING_MEAN)
    return [metric for metric in metrics if any(r.metric(metric) is not None for r in trials)]


def rate_figure(results: Results) -> Figure | None:
    """Learning rate by recipe and capacity as heat maps; None without complete trials."""
    metrics = _measured(results, results.complete)
    if not metrics:
        return None
    columns = _columns([record.config.learning_rate for record in results.complete])
    rows = _rows(results)
    charts = tuple(_rate_chart(metric, rows, columns) for metric in metrics)
    caption = (
        "Mean over the complete trials in a cell; touch it for how many they are"
        f"{results.more_stopped()}. Where a cell is empty, no complete trial of the row has "
        "such a rate, or none has the score. Compare along a row before along a column: the best "
        "learning rate differs from recipe to recipe and, of LoRA, with alpha / rank."
    )
    return Figure(caption, charts, columns=2)


Rows = dict[str, tuple[TrialRecord, ...]]


def _rows(results: Results) -> Rows:
    """The complete trials by label of their group or, of many groups, of their recipe."""
    if len(results.groups) <= _MOST_ROWS:
        return {group.label: group.trials for group in results.groups}
    rows: Rows = {}
    for group in results.groups:
        name = f"{group.title}{results.whose(group.sweep)}"
        rows[name] = (*rows.get(name, ()), *group.trials)
    return rows


def _columns(rates: Sequence[float]) -> dict[float, str]:
    """The heat map's columns: the lowest learning rate of each, ascending, and its label.

    One per rate or, if there are too many, per range of equal width on a log scale.
    """
    distinct = sorted(set(rates))
    if len(distinct) <= _MOST_RATES:
        return {value: f"{value:.2e}" for value in distinct}
    bins = min(_MOST_RATES, max(3, round(math.sqrt(len(rates)) * 1.5)))
    edges = np.geomspace(distinct[0], distinct[-1], bins + 1).tolist()
    return {low: f"{low:.1e} to {high:.1e}" for low, high in pairwise(edges)}


def _rate_chart(metric: str, rows: Rows, columns: Mapping[float, str]) -> Chart:
    grid = [_cells(trials, metric, list(columns)) for trials in rows.values()]
    means = [[sum(cell) / len(cell) if cell else None for cell in row] for row in grid]
    labels = list(columns.values())
    signed = "+" if metric == FORGETTING_MEAN else ""
    hovers = [
        [
            f"{escape(name)}, lr {label}<br>{how_many(len(cell), 'trial')}" if cell else ""
            for label, cell in zip(labels, row, strict=True)
        ]
        for name, row in zip(rows, grid, strict=True)
    ]
    texts = [["" if v is None else f"{v:{signed}z.2f}" for v in row] for row in means]
    cells = "; ".join(
        f"{name}: " + ", ".join(f"{t} at {lr}" for lr, t in zip(labels, row, strict=True) if t)
        for name, row in zip(rows, texts, strict=True)
    )
    trace = heatmap(
        labels, [*rows], means, diverging=metric == FORGETTING_MEAN, texts=texts, hovers=hovers
    )
    return Chart(
        f"rate-{metric.replace('/', '-')}",
        f"Mean {NAMES[metric]}",
        f"Heat map of mean {NAMES[metric]} by recipe, capacity and learning rate. {cells}.",
        [trace],
        {
            "xaxis": axis("learning rate", type="category", tickangle=-35, showgrid=False),
            "yaxis": axis("", type="category", showgrid=False, autorange="reversed"),
        },
        height=210 + 24 * len(rows),
    )


def _cells(
    trials: Sequence[TrialRecord], metric: str, lowest: Sequence[float]
) -> list[list[float]]:
    """The values of a row of the heat map, by column."""
    cells: list[list[float]] = [[] for _ in lowest]
    for record in trials:
        value = record.metric(metric)
        if value is not None:
            cells[bisect_right(lowest, record.config.learning_rate) - 1].append(value)
    return cells


def step_size_figure(results: Results) -> Figure | None:
    """Forgetting and gain over learning rate x scale; None for fewer than three trials."""
    scaled = [record for record in results.complete if record.config.step_size is not None]
    metrics = _measured(results, scaled)
    if len(scaled) < 3 or not metrics:
        return None
    charts = tuple(_step_size_chart(results, metric, scaled) for metric in metrics)
    left_out = ""
    if len(scaled) < len(results.complete):
        left_out = " Methods whose learning rates compare with no other's are left out."
    caption = (
        "A method's scale (of LoRA alpha / rank, or alpha / sqrt(rank) under rsLoRA) multiplies "
        "its update, so trials compare at learning rate x scale. Dots: every complete trial"
        f"{results.more_stopped()}.{left_out}"
    )
    return Figure(caption, charts, 2, tuple(point_keys(results)))


def _step_size_chart(results: Results, metric: str, scaled: Sequence[TrialRecord]) -> Chart:
    drawn = [record for record in scaled if record.metric(metric) is not None]
    steps = [record.config.step_size for record in drawn]
    values = [record.metric(metric) for record in drawn]
    return Chart(
        f"step-size-{metric.replace('/', '-')}",
        NAMES[metric],
        f"Scatter plot of {NAMES[metric]} over learning rate times scale, {len(drawn)} "
        "trials coloured by recipe.",
        [point_trace(results, drawn, steps, values)],
        {
            # With Plotly's own ticks, as it may span no power of ten.
            "xaxis": axis("learning rate x scale", type="log", exponentformat="power"),
            "yaxis": axis(axis_title(metric)),
        },
    )
