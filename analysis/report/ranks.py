"""Effects of rank and learning rate: curves over ranks, heat maps, learning rate x scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from analysis.report.charts import (
    FULL,
    Chart,
    Figure,
    Trace,
    heatmap,
    hover,
    point_trace,
    rank_axis,
    rank_colours,
    rank_keys,
    rate_axis,
)
from analysis.results import Group, Results
from analysis.stats.intervals import Interval
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC
from trainables.results.records import TrialRecord
from trainables.results.wording import NAMES, metric_text

_MOST_RATES = 7


def rank_figure(results: Results) -> Figure | None:
    """In-domain, OOD and forgetting by rank, with full fine-tuning as a band; None without LoRA."""
    lora = [group for group in results.groups if group.rank is not None]
    if not lora:
        return None
    charts = [
        _rank_chart(results, lora, metric)
        for metric in (IN_DOMAIN_ACC, OOD_ACC, FORGETTING_MEAN)
        if all(group.best.metric(metric) is not None for group in lora)
    ]
    full = results.full
    band = (
        f"The band is the best full fine-tuning ({results.name(full.best)}) with its interval. "
        if full
        else ""
    )
    caption = (
        "Line: the best trade-off at each rank, with the 95 % bootstrap interval over items. Dots: "
        f"every complete LoRA trial, at all learning rates. {band}Dotted: the base."
    )
    return Figure(caption, tuple(charts), columns=3)


def _rank_chart(results: Results, lora: Sequence[Group], metric: str) -> Chart:
    ranks = [group.rank for group in lora if group.rank is not None]
    trials = [record for group in lora for record in group.trials]
    dots: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [record.rank for record in trials],
        "y": [record.metric(metric) for record in trials],
        "text": [hover(results, record) for record in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": "@muted", "size": 6, "opacity": 0.45},
    }
    bests = [group.best for group in lora]
    intervals = [results.interval(record, metric) for record in bests]
    values = [record.metric(metric) or 0.0 for record in bests]
    line: Trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": ranks,
        "y": values,
        "text": [hover(results, record) for record in bests],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": "#2b6f9f", "width": 2.5},
        "marker": {"color": "#2b6f9f", "size": 8},
        "error_y": _error_bars(values, intervals),
    }
    layout = {
        "xaxis": rank_axis(ranks),
        "yaxis": {"title": {"text": NAMES[metric]}},
        "showlegend": False,
        **_references(results, metric),
    }
    told = ", ".join(
        f"rank {rank} {metric_text(metric, value)}"
        for rank, value in zip(ranks, values, strict=True)
    )
    return Chart(
        f"rank-{metric.replace('/', '-')}",
        NAMES[metric],
        f"{NAMES[metric]} of the best trade-off at each rank: {told}.",
        [dots, line],
        layout,
    )


def _error_bars(values: Sequence[float], intervals: Sequence[Interval | None]) -> Trace:
    pairs = list(zip(values, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(i.high - v, 0.0) if i else 0.0 for v, i in pairs],
        "arrayminus": [max(v - i.low, 0.0) if i else 0.0 for v, i in pairs],
        "color": "#2b6f9f",
        "thickness": 1.4,
        "width": 4,
    }


def _references(results: Results, metric: str) -> dict[str, list[Trace]]:
    """Full fine-tuning's band and the base's line."""
    shapes: list[Trace] = []
    notes: list[Trace] = []
    across = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "layer": "below"}
    full = results.full
    value = full.best.metric(metric) if full else None
    if full and value is not None:
        interval = results.interval(full.best, metric)
        if interval:
            band = {"type": "rect", "y0": interval.low, "y1": interval.high, "line": {"width": 0}}
            shapes.append({**across, **band, "fillcolor": FULL, "opacity": 0.16})
        line = {"color": FULL, "width": 1.6}
        shapes.append({**across, "type": "line", "y0": value, "y1": value, "line": line})
        notes.append(_note("full fine-tuning", value, FULL, is_above=True))
    base = results.base.metrics.get(metric)
    if base is not None:
        dotted = {"color": "@muted", "width": 1.2, "dash": "dot"}
        shapes.append({**across, "type": "line", "y0": base, "y1": base, "line": dotted})
        is_above = value is not None and base > value
        if notes and is_above:
            notes[0]["yanchor"] = "top"
        notes.append(_note("base", base, "@muted", is_above))
    return {"shapes": shapes, "annotations": notes}


def _note(text: str, value: float, colour: str, is_above: bool) -> Trace:
    place = {"xref": "paper", "x": 1, "xanchor": "right", "yref": "y", "y": value}
    anchor = {"yanchor": "bottom" if is_above else "top", "showarrow": False}
    return {**place, **anchor, "text": text, "font": {"size": 11, "color": colour}}


def rate_figure(results: Results) -> Figure | None:
    """Learning rate by rank as heat maps; None without LoRA trials."""
    trials = results.lora
    metrics = [
        metric
        for metric in (IN_DOMAIN_ACC, FORGETTING_MEAN)
        if trials and all(record.metric(metric) is not None for record in trials)
    ]
    if not metrics:
        return None
    columns = _columns([record.config.learning_rate for record in trials])
    charts = tuple(_rate_chart(trials, metric, columns) for metric in metrics)
    caption = (
        "Mean over the trials in a cell; touch it for how many. Where a cell is empty, no complete "
        "trial has such a rate at that rank. Compare along a row before along a column: at each "
        "rank the best learning rate differs with alpha / rank."
    )
    return Figure(caption, charts, columns=2)


@dataclass(frozen=True)
class _Column:
    """The learning rates of one column of the heat map.

    Attributes:
        low: its rates are at least this, and below the next column's.
        label: unique among the columns.
    """

    low: float
    label: str


def _columns(rates: Sequence[float]) -> list[_Column]:
    """One column per rate or, if there are too many, per range of equal width on a log scale."""
    distinct = sorted(set(rates))
    if len(distinct) <= _MOST_RATES:
        return [_Column(*pair) for pair in zip(distinct, _told_apart(distinct), strict=True)]
    low, high = distinct[0], distinct[-1]
    bins = min(_MOST_RATES, max(3, round(math.sqrt(len(rates)) * 1.5)))
    edges = sorted({low, *(low * (high / low) ** (i / bins) for i in range(1, bins)), high})
    labels = [f"{low} to {high}" for low, high in pairwise(_told_apart(edges))]
    return [_Column(*pair) for pair in zip(edges[:-1], labels, strict=True)]


def _told_apart(values: Sequence[float]) -> list[str]:
    """Format distinct rates with just enough digits that no two look alike."""
    digits = 1
    while len({f"{value:.{digits}e}" for value in values}) < len(values):
        digits += 1
    return [f"{value:.{digits}e}" for value in values]


def _rate_chart(trials: Sequence[TrialRecord], metric: str, columns: Sequence[_Column]) -> Chart:
    ranks = sorted({record.rank for record in trials if record.rank is not None})
    cells: dict[tuple[int | None, int], list[float]] = {}
    for record in trials:
        column = sum(record.config.learning_rate >= c.low for c in columns) - 1
        cells.setdefault((record.rank, column), []).append(record.metric(metric) or 0.0)
    grid = [[cells.get((rank, column)) for column in range(len(columns))] for rank in ranks]
    means = [[sum(cell) / len(cell) if cell else None for cell in row] for row in grid]
    labels = [column.label for column in columns]
    signed = "+" if metric == FORGETTING_MEAN else ""
    told = [
        [
            f"rank {rank}, lr {label}<br>{len(cell)} trials" if cell else ""
            for label, cell in zip(labels, row, strict=True)
        ]
        for rank, row in zip(ranks, grid, strict=True)
    ]
    trace = heatmap(
        labels,
        [str(rank) for rank in ranks],
        means,
        diverging=metric == FORGETTING_MEAN,
        texts=[["" if v is None else f"{v:{signed}.2f}" for v in row] for row in means],
        hovers=told,
    )
    return Chart(
        f"rate-{metric.replace('/', '-')}",
        f"Mean {NAMES[metric]}",
        f"Heat map of mean {NAMES[metric]} over {len(ranks)} ranks and the learning rates "
        f"{', '.join(labels)}.",
        [trace],
        {
            "xaxis": {
                "title": {"text": "learning rate"},
                "type": "category",
                "tickangle": -35,
                "showgrid": False,
            },
            "yaxis": {"title": {"text": "rank"}, "type": "category", "showgrid": False},
        },
    )


def step_size_figure(results: Results) -> Figure | None:
    """Forgetting and gain over learning rate x scale; None for fewer than three LoRA trials."""
    trials = results.lora
    metrics = [
        metric
        for metric in (IN_DOMAIN_ACC, FORGETTING_MEAN)
        if trials and all(record.metric(metric) is not None for record in trials)
    ]
    if len(trials) < 3 or not metrics:
        return None
    charts = tuple(_step_size_chart(results, trials, metric) for metric in metrics)
    caption = (
        "LoRA's scale (alpha / rank, or alpha / sqrt(rank) under rsLoRA) multiplies its update, so "
        "trials of different alpha compare at learning rate x scale."
    )
    keys = [key for key in rank_keys(results) if key.shape == "dot"]
    return Figure(caption, charts, 2, tuple(keys))


def _step_size_chart(results: Results, trials: Sequence[TrialRecord], metric: str) -> Chart:
    traces = []
    for rank, colour in rank_colours(results).items():
        steps = {
            r.config.trial_id: r.config.learning_rate * r.config.lora.scaling
            for r in trials
            if r.config.lora and r.rank == rank
        }
        own = [record for record in trials if record.config.trial_id in steps]
        values = [record.metric(metric) for record in own]
        if own:
            marker = {"color": colour}
            traces.append(point_trace(results, own, list(steps.values()), values, marker))
    return Chart(
        f"step-size-{metric.replace('/', '-')}",
        NAMES[metric],
        f"Scatter plot of {NAMES[metric]} over learning rate times scale, {len(trials)} LoRA "
        "trials coloured by rank.",
        traces,
        {
            "xaxis": rate_axis("learning rate x scale"),
            "yaxis": {"title": {"text": NAMES[metric]}},
            "showlegend": False,
        },
    )
