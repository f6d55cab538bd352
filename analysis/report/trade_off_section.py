"""The trade-off: gain against forgetting and other objectives, and the search's progress."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from analysis.recipe_marks import ACCENT
from analysis.report.charts import (
    Chart,
    Figure,
    Key,
    Trace,
    axis,
    listed,
    marked,
    point_keys,
    point_marker,
    point_trace,
    sweep_keys,
    sweep_mark,
)
from analysis.results.formatting import NAMES, axis_title, goals_in_words, how_many
from analysis.results.pareto import is_feasible, is_no_worse, objective_losses
from analysis.results.recommendation import refuted
from analysis.results.sample_size import FEWEST_OF_CAPACITY
from analysis.shown_sweeps import Results
from analysis.stats.hypervolume import hypervolume
from analysis.sweeps import Sweep, bases
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialRecord, points_of

_POINTS = "Each point is a trial that ran to its end"
_POINTS_OF_CURVES = (
    "Each large point is a trial that ran to its end; a line leads from the base through small "
    "points, what the trial is at other strengths of its update"
)
_SMALL, _FAINT = 5, 0.55
_REPAIRED = "cross"
_FEWEST_TO_LEVEL_OFF = 4 * FEWEST_OF_CAPACITY
"""Trials whose last quarter tells whether more would help: of fewer it may be a single one."""


def trade_off_figure(results: Results) -> Figure | None:
    """Plot the gain in the domain against forgetting, OOD accuracy and every other objective.

    The front is marked. None if no complete trial measured any of these.
    """
    charts = [_chart(results, *each) for each in enumerate(results.plotted_against)]
    if not charts:
        return None
    caption = (
        f"{_POINTS_OF_CURVES if _has_curves(results) else _POINTS}. {_describe_front(results)}. "
        "Touch a point for its settings; larger points have more capacity."
    )
    marks = [Key("Pareto front", "@ink", "ring")] if results.front else []
    if results.recommendation:
        marks.append(Key(results.recommendation.word, ACCENT, "target"))
    if _has_curves(results):
        marks.append(Key("other strengths", "@muted", "line"))
    if any(point.repair for point in results.points):
        marks.append(Key("repaired", "@muted", _REPAIRED))
    if any(_base(results, metric) for metric in results.judged_by):
        marks.append(Key("base", "@ink", "star"))
    return Figure(caption, tuple(charts), 2, (*point_keys(results), *marks))


def _has_curves(results: Results) -> bool:
    return len(results.points) > len(results.complete)


def _chart(results: Results, index: int, metric: str) -> Chart:
    title = f"{NAMES[results.gain]} against {NAMES.get(metric, metric)}"
    return Chart(
        f"trade-off-{index}",
        title,
        f"Scatter plot of {how_many(len(results.complete), 'complete trial')}: {title}.",
        _scatter(results, metric),
        {
            "xaxis": axis(axis_title(metric), zeroline=metric == FORGETTING_MEAN),
            "yaxis": axis(axis_title(results.gain)),
        },
        height=400,
    )


def _describe_front(results: Results) -> str:
    goals = goals_in_words(results.goals)
    count = len(results.front)
    if not count:
        return f"{_no_front(results)} ({goals})"
    found = (results.judged.get(record.point_id) for record in results.front)
    against = refuted(results.goals, [record for record in found if record], results.names)
    held = "one ringed trial" if count == 1 else f"{count} ringed trials"
    text = (
        f"The Pareto front ({goals}) holds the {held} to which no other is equal or better in "
        "every objective and better in one"
    )
    return f"{text}, each by its own run; {against}" if against else text


def _scatter(results: Results, metric: str) -> list[Trace]:
    shown = [record for record in results.complete if record.metric(metric) is not None]
    trials = _points(results, shown, metric)
    curves = _curves(results, metric) if _has_curves(results) else []
    ring = {"symbol": "circle-open", "color": "@ink", "size": 16, "line": {"width": 1.3}}
    around = [_points(results, results.front, metric, ring)]
    if results.recommendation:
        target = {"symbol": "circle-open", "color": ACCENT, "size": 24, "line": {"width": 2.5}}
        around.append(_points(results, [results.recommendation.trial], metric, target))
    for trace in around:  # the points within have the hover texts
        del trace["hovertemplate"]
        trace["hoverinfo"] = "skip"
    return [trace for trace in (*curves, trials, *around) if trace["x"]] + _base(results, metric)


def _curves(results: Results, metric: str) -> list[Trace]:
    """A line a trial, from the base through its strengths, and a small point at each."""
    x: list[float | None] = []
    y: list[float | None] = []
    for trial in results.complete:
        base = results.sweep(trial).base.metrics
        for metrics in (base, *(view.metrics for view in trial.curve)):
            if metric in metrics and results.gain in metrics:
                x.append(metrics[metric])
                y.append(metrics[results.gain])
        x.append(None)  # a gap before the next
        y.append(None)
    line: Trace = {"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip"}
    line |= {"line": {"color": "@muted", "width": 0.8}, "opacity": _FAINT}
    altered = [point for point in results.points if point.is_altered]
    marker = point_marker(results, altered) | {"opacity": _FAINT}
    marker["size"] = [2 * _SMALL if point.repair else _SMALL for point in altered]
    of_curve = zip(altered, marker["symbol"], strict=True)
    marker["symbol"] = [_REPAIRED if point.repair else symbol for point, symbol in of_curve]
    return [line, _points(results, altered, metric, marker)]


def _points(
    results: Results,
    records: Sequence[TrialRecord],
    metric: str,
    marker: dict[str, Any] | None = None,
) -> Trace:
    x = [record.metric(metric) for record in records]
    y = [record.metric(results.gain) for record in records]
    return point_trace(results, records, x, y, marker)


def _base(results: Results, metric: str) -> list[Trace]:
    if not (found := bases(results.sweeps, metric, results.gain)):
        return []
    x, y = zip(*found, strict=True)
    edge = {"color": "@paper", "width": 1}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [*x],
            "y": [*y],
            "text": [*map(escape, found.values())],
            "marker": {"symbol": "star", "color": "@ink", "size": 15, "line": edge},
            "hovertemplate": "<b>%{text}</b><br>%{x:.3f}, %{y:.3f}<extra></extra>",
        }
    ]


def hypervolume_shares(results: Results, sweep: Sweep) -> list[float]:
    """Hypervolume of the front after each trial of a search, as a fraction of the maximum.

    Objectives are scaled between the ends of `_box`, so 1 would be a single trial that is best in
    everything. A trial adds all its points but those that violate a constraint.
    """
    goals = results.goals
    box = _box(results)
    front: list[list[float]] = []
    shares = [0.0]
    for trial in results.of(sweep, results.complete):
        share = shares[-1]
        for record in points_of([trial]):
            losses = objective_losses(goals, record)
            own = [_place(loss, *ends) for loss, ends in zip(losses, box, strict=True)]
            if not losses or not is_feasible(goals, record):
                continue
            if any(is_no_worse(point, own) for point in front):
                continue
            front = [point for point in front if not is_no_worse(own, point)] + [own]
            share = hypervolume(front, [1.0] * len(goals.objectives))
        shares.append(share)
    return shares[1:]


def _box(results: Results) -> list[tuple[float, float]]:
    """The best and the worst loss of each objective over all sweeps' complete trials and bases.

    Tukey's fence leaves out outliers behind the front: in a box as large as one that forgot
    everything, any front would seem to fill it.
    """
    goals = results.goals
    known = [objective_losses(goals, record) for record in results.points]
    kept = [objective_losses(goals, record) for record in results.front]
    for values in bases(results.sweeps, *(aim.metric for aim in goals.objectives)):
        kept.append([aim.loss(v) for aim, v in zip(goals.objectives, values, strict=True)])
    box = []
    for index, losses in enumerate(zip(*known, strict=True)):
        lower, upper = np.quantile(losses, [0.25, 0.75])
        fence = upper + 1.5 * (upper - lower)
        shown = [*(loss for loss in losses if loss <= fence), *(own[index] for own in kept)]
        box.append((min(shown), max(shown)))
    return box


def _place(loss: float, best: float, worst: float) -> float:
    """0 at the best, 1 at the worst, more beyond."""
    if best == worst:
        return float(loss > worst)
    return (loss - best) / (worst - best)


def _no_front(results: Results) -> str:
    lacks = "keeps every constraint" if results.goals.constraints else "measured every objective"
    return f"No run of the search {lacks}, so there is no front yet"


def hypervolume_figure(results: Results) -> Figure | None:
    """How the front grew over each search; None if none has three complete trials."""
    found = [(sweep, hypervolume_shares(results, sweep)) for sweep in results.sweeps]
    shown = [(sweep, shares) for sweep, shares in found if len(shares) >= 3]
    if not shown:
        return None
    ends = listed(results, [(sweep, f"{shares[-1]:.2f}") for sweep, shares in shown])
    counts = listed(results, [(sweep, f"{len(shares)}") for sweep, shares in shown])
    chart = Chart(
        "hypervolume",
        "Hypervolume of the front as the search went on",
        f"Step line of the hypervolume after each of {counts} complete trials; it ends at "
        f"{ends} of what is possible.",
        [_steps(results, sweep, shares) for sweep, shares in shown],
        {
            "xaxis": axis("complete trials"),
            "yaxis": axis("share of the possible", rangemode="tozero"),
        },
        height=240,
    )
    whole = listed(results, [(sweep, f"{100 * shares[-1]:.1f} %") for sweep, shares in shown])
    caption = (
        f"The front dominates {whole} of the box between the best and the worst "
        "value seen of each objective, without outliers behind the front. "
        f"{_last_quarter(results, shown)}"
    )
    if not results.front:
        caption = f"{_no_front(results)}."
    keys = sweep_keys(results, of=[sweep for sweep, _ in shown])
    return Figure(caption, (chart,), legend=tuple(keys))


def _last_quarter(results: Results, shown: Sequence[tuple[Sweep, Sequence[float]]]) -> str:
    """What it added to the hypervolume of each search, where that tells anything."""
    added = [
        (sweep, f"{100 * (shares[-1] - shares[len(shares) * 3 // 4 - 1]):.1f} points")
        for sweep, shares in shown
        if len(shares) >= _FEWEST_TO_LEVEL_OFF
    ]
    if len(added) < len(shown):
        return (
            f"Fewer than {_FEWEST_TO_LEVEL_OFF} complete trials are too few to say whether more "
            "would help."
        )
    return (
        f"The last quarter of the search added {listed(results, added)}: where that is little, "
        "more trials of this space will hardly help."
    )


def _steps(results: Results, sweep: Sweep, shares: Sequence[float]) -> Trace:
    colour = "@ink" if len(results.sweeps) == 1 else sweep_mark(results, sweep).colour
    line = {
        "type": "scatter",
        "mode": "lines",
        "line": {"shape": "hv", "color": colour, "width": 2},
        "x": list(range(1, len(shares) + 1)),
        "y": list(shares),
        "hovertemplate": "after %{x} complete trials: %{y:.3f}<extra></extra>",
    }
    return marked(results, sweep, line)
