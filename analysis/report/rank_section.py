"""Effects of rank and learning rate: curves over ranks, heat maps, learning rate x scale."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np

from analysis.report.charts import (
    FULL,
    Chart,
    Figure,
    Mark,
    Trace,
    axis,
    heatmap,
    hover,
    point_keys,
    point_trace,
    rank_colours,
    sweep_keys,
    sweep_mark,
    symbols,
)
from analysis.results.formatting import NAMES, axis_title, how_many, metric_text
from analysis.results.sample_size import FEWEST_OF_RANK
from analysis.shown_sweeps import Group, Results
from analysis.stats.intervals import error_bars
from analysis.sweeps import Sweep, bases
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialRecord

_MOST_RATES = 7


def rank_figure(results: Results) -> Figure | None:
    """Gain, OOD and forgetting by rank, with full fine-tuning as a band; None without LoRA."""
    lora = results.lora_groups()
    if not lora:
        return None
    charts = [_rank_chart(results, *shown) for shown in results.over_ranks().items()]
    full = [results.name(group.best) for group in results.groups if group.rank is None]
    at = f"full fine-tuning at its best trade-off ({', '.join(full)})"
    band = f"The band is {at}, with its interval. " if full else ""
    if len(full) > 1:
        band = f"Bands are {at} in each sweep, with their intervals. "
    joined = "Line: the best trade-off at each rank"
    if not all(group.is_tried for group in lora):
        joined += (
            f" of at least {FEWEST_OF_RANK} trials; hollow and not joined: that of fewer, which "
            "tells more of their learning rates than of the rank"
        )
    caption = (
        f"{joined} (of the recommended trial's, that trial: repeats may have decided). Bars: the "
        "95 % interval over items, not over trainings, that holds for all trials it was picked "
        "from: the best of more is better by chance alone. "
        "Dots: every complete LoRA trial, at all learning rates"
        f"{results.more_stopped()}. {band}Dotted: the base."
    )
    keys = sweep_keys(results, of=[sweep for sweep in results.sweeps if results.lora_groups(sweep)])
    return Figure(caption, tuple(charts), 3, tuple(keys))


def _rank_chart(results: Results, metric: str, lora: Sequence[Group]) -> Chart:
    by_sweep = [(s, [group for group in lora if group.sweep is s]) for s in results.sweeps]
    curves = [(sweep, own) for sweep, own in by_sweep if own]
    layout = {
        "xaxis": _rank_axis(lora),
        "yaxis": axis(axis_title(metric)),
        **_references(results, metric),
    }
    text = ", ".join(
        f"{group.short_label} {metric_text(metric, group.best.metric(metric))}"
        for _, own in curves
        for group in own
    )
    return Chart(
        f"rank-{metric.replace('/', '-')}",
        NAMES[metric],
        f"{NAMES[metric]} of the best trade-off at each rank: {text}.",
        [trace for sweep, own in curves for trace in _curve(results, sweep, own, metric)],
        layout,
    )


def _rank_axis(lora: Sequence[Group]) -> dict[str, object]:
    """A logarithmic axis with a tick at each rank; of one sweep it says how many trials it had."""
    ranks = list(dict.fromkeys(group.rank for group in lora))
    is_one_sweep = len(ranks) == len(lora)
    return {
        "title": {"text": "rank, best of so many trials" if is_one_sweep else "rank"},
        "type": "log",
        "tickvals": ranks,
        "ticktext": [f"{group.rank}<br>of {group.picked_from}" for group in lora]
        if is_one_sweep
        else [str(rank) for rank in ranks],
    }


def _curve(results: Results, sweep: Sweep, lora: Sequence[Group], metric: str) -> list[Trace]:
    """Dots for a sweep's trials, and a line through the best of each rank that was tried enough."""
    trials = [record for group in lora for record in group.trials]
    dots: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [record.rank for record in trials],
        "y": [record.metric(metric) for record in trials],
        "text": [hover(results, record) for record in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": "@muted", "size": 6, "opacity": 0.45, **symbols(results, trials)},
    }
    mark = sweep_mark(results, sweep)
    tried = [group for group in lora if group.is_tried]
    line = _bests(results, tried, metric, mark) | {
        "mode": "lines+markers",
        "line": {"color": mark.colour, "width": 2.5},
    }
    apart = _bests(results, [group for group in lora if not group.is_tried], metric, mark)
    apart["marker"] |= {"symbol": f"{mark.symbol}-open"}
    return [dots, *(trace for trace in (line, apart) if trace["x"])]


def _bests(results: Results, lora: Sequence[Group], metric: str, mark: Mark) -> Trace:
    """The best of each rank, with its interval."""
    intervals = [results.items.interval(group.best, metric, group.picked_from) for group in lora]
    values = [group.best.metric(metric) or 0.0 for group in lora]
    below, above = error_bars(values, intervals)
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [group.rank for group in lora],
        "y": values,
        "text": [_hover_of_best(results, group) for group in lora],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": mark.colour, "size": 8, "symbol": mark.symbol},
        "error_y": {**bars, "color": mark.colour, "thickness": 1.4, "width": 4},
    }


def _hover_of_best(results: Results, group: Group) -> str:
    count = group.picked_from
    text = f"{hover(results, group.best)}<br>best of {how_many(count, 'trial')}"
    return text if results.keeps_constraints(group.best) else f"{text}, breaks a constraint"


def _references(results: Results, metric: str) -> dict[str, list[Trace]]:
    """Full fine-tuning's band, one for each sweep that has one, and a line for each base."""
    shapes: list[Trace] = []
    notes: list[Trace] = []
    across = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "layer": "below"}
    for group in results.groups:
        value = group.best.metric(metric)
        if group.rank is not None or value is None:
            continue
        interval = results.items.interval(group.best, metric, group.picked_from)
        if interval:
            band = {"type": "rect", "y0": interval.low, "y1": interval.high, "line": {"width": 0}}
            shapes.append({**across, **band, "fillcolor": FULL, "opacity": 0.16})
        line = {"color": FULL, "width": 1.6}
        shapes.append({**across, "type": "line", "y0": value, "y1": value, "line": line})
        notes.append(_note(group.label, value, FULL, is_base=False))
    for (base,), name in bases(results.sweeps, metric).items():
        dotted = {"color": "@muted", "width": 1.2, "dash": "dot"}
        shapes.append({**across, "type": "line", "y0": base, "y1": base, "line": dotted})
        notes.append(_note(name, base, "@muted", is_base=True))
    return {"shapes": shapes, "annotations": notes}


def _note(text: str, value: float, colour: str, is_base: bool) -> Trace:
    """A label: above its line on the right or, of a base, below it on the left."""
    x = {"x": 0, "xanchor": "left"} if is_base else {"x": 1, "xanchor": "right"}
    place = {"xref": "paper", **x, "yref": "y", "y": value, "showarrow": False}
    anchor = {"yanchor": "top" if is_base else "bottom"}
    return {**place, **anchor, "text": escape(text), "font": {"size": 11, "color": colour}}


def _measured(results: Results) -> list[str]:
    """Which of gain and forgetting LoRA trials have."""
    metrics = (results.gain, FORGETTING_MEAN)
    return [m for m in metrics if any(r.metric(m) is not None for r in results.lora)]


def rate_figure(results: Results) -> Figure | None:
    """Learning rate by rank as heat maps; None without LoRA trials."""
    metrics = _measured(results)
    if not metrics:
        return None
    columns = _columns([record.config.learning_rate for record in results.lora])
    charts = tuple(_rate_chart(results, metric, columns) for metric in metrics)
    caption = (
        "Mean over the complete trials in a cell; touch it for how many they are"
        f"{results.more_stopped()}. Where a cell is empty, no complete trial has "
        "such a rate at that rank, or none has the score. Compare along a row before along a "
        "column: at each rank the best learning rate differs with alpha / rank."
    )
    return Figure(caption, charts, columns=2)


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


def _rate_chart(results: Results, metric: str, columns: Mapping[float, str]) -> Chart:
    lora = results.lora_groups()
    rows = [f"{group.rank}{results.whose(group.sweep)}" for group in lora]
    grid = [_cells(group.trials, metric, list(columns)) for group in lora]
    means = [[sum(cell) / len(cell) if cell else None for cell in row] for row in grid]
    labels = list(columns.values())
    signed = "+" if metric == FORGETTING_MEAN else ""
    text = [
        [
            f"rank {escape(name)}, lr {label}<br>{how_many(len(cell), 'trial')}" if cell else ""
            for label, cell in zip(labels, row, strict=True)
        ]
        for name, row in zip(rows, grid, strict=True)
    ]
    texts = [["" if v is None else f"{v:{signed}z.2f}" for v in row] for row in means]
    cells = "; ".join(
        f"Rank {name}: " + ", ".join(f"{t} at {lr}" for lr, t in zip(labels, row, strict=True) if t)
        for name, row in zip(rows, texts, strict=True)
    )
    trace = heatmap(
        labels, rows, means, diverging=metric == FORGETTING_MEAN, texts=texts, hovers=text
    )
    return Chart(
        f"rate-{metric.replace('/', '-')}",
        f"Mean {NAMES[metric]}",
        f"Heat map of mean {NAMES[metric]} by rank and learning rate. {cells}.",
        [trace],
        {
            "xaxis": axis("learning rate", type="category", tickangle=-35, showgrid=False),
            "yaxis": axis("rank", type="category", showgrid=False),
        },
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
    """Forgetting and gain over learning rate x scale; None for fewer than three LoRA trials."""
    metrics = _measured(results)
    if len(results.lora) < 3 or not metrics:
        return None
    charts = tuple(_step_size_chart(results, metric) for metric in metrics)
    caption = (
        "LoRA's scale (alpha / rank, or alpha / sqrt(rank) under rsLoRA) multiplies its update, so "
        "trials of different alpha compare at learning rate x scale. Dots: every complete trial"
        f"{results.more_stopped()}."
    )
    keys = [key for key in point_keys(results) if key.colour != FULL]
    return Figure(caption, charts, 2, tuple(keys))


def _step_size_chart(results: Results, metric: str) -> Chart:
    traces = []
    drawn = [record for record in results.lora if record.metric(metric) is not None]
    for rank, colour in rank_colours(results).items():
        own = [record for record in drawn if record.rank == rank]
        steps = [record.config.step_size for record in own]
        values = [r.metric(metric) for r in own]
        if own:
            marker = {"color": colour, **symbols(results, own)}
            traces.append(point_trace(results, own, steps, values, marker))
    return Chart(
        f"step-size-{metric.replace('/', '-')}",
        NAMES[metric],
        f"Scatter plot of {NAMES[metric]} over learning rate times scale, {len(drawn)} "
        "LoRA trials coloured by rank.",
        traces,
        {
            # With Plotly's own ticks, as it may span no power of ten.
            "xaxis": axis("learning rate x scale", type="log", exponentformat="power"),
            "yaxis": axis(axis_title(metric)),
        },
    )
