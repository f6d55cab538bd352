"""Learning and forgetting over the optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from analysis.recipe_marks import are_many
from analysis.report.charts import (
    Chart,
    Figure,
    Key,
    Trace,
    axis,
    group_mark,
    groups_in_words,
    leading_groups,
    marked,
    recipe_keys,
    sweep_keys,
)
from analysis.results.formatting import how_many, metric_name
from analysis.shown_sweeps import Group, Results
from trainables.metric_keys import TRAIN_LOSS, VALIDATION_LOSS
from trainables.records.schema import TrialRecord

_MOST_POINTS = 60
_LOSSES = (TRAIN_LOSS, VALIDATION_LOSS)
_LOG_AXIS = {"type": "log", "exponentformat": "power", "nticks": 6}

Curve = list[tuple[float, float]]


def curves_figure(results: Results) -> Figure | None:
    """Loss, gain, OOD accuracy and forgetting over steps, by recipe and capacity."""
    charts: list[Chart] = []
    for metric in results.scores[:2] if are_many(results) else (TRAIN_LOSS, *results.scores):
        found = {r.config.trial_id: _curve(results, r, metric) for r in results.search_trials}
        if curves := {trial_id: curve for trial_id, curve in found.items() if curve}:
            charts.append(_chart(results, metric, curves))
    if not charts:
        return None
    thin = "Thin: each trial, in grey one that did not run to its end, as far as it came. "
    caption = (
        f"{'' if are_many(results) else thin}Thick: the best trade-off of each "
        f"{groups_in_words(results)}. Evaluations begin at the base, which is every trial's step 0."
    )
    keys = [*recipe_keys(results, "line"), *sweep_keys(results, "@ink")]
    if len(results.complete) < len(results.search_trials) and not are_many(results):
        keys.append(Key("not complete", "@muted", "line"))
    return Figure(caption, tuple(charts), 2, tuple(keys))


def _curve(results: Results, record: TrialRecord, metric: str) -> Curve:
    """A trial's points, of many only some, from the base's on; empty if it never measured it."""
    sweep = results.sweep(record)
    history = sweep.histories[record.number]
    curve = [(float(m.step), m.metrics[metric]) for m in history if metric in m.metrics]
    start = sweep.base.metrics.get(metric)
    if curve and start is not None:
        curve.insert(0, (0.0, start))
    every = max(1, len(curve) // _MOST_POINTS)
    return [*curve[:-1:every], *curve[-1:]]


def _chart(results: Results, metric: str, curves: dict[str, Curve]) -> Chart:
    traces = [] if are_many(results) else _all_thin(results, curves)
    for group in leading_groups(results):
        if best := curves.get(group.best.config.trial_id):
            traces.append(_thick(results, group, best, group_mark(results, group).colour))
    title = metric_name(metric)
    return Chart(
        f"curve-{metric.replace('/', '-')}",
        title,
        f"Curves of {title} over optimizer steps for {how_many(len(curves), 'trial')}.",
        [trace for trace in traces if trace["x"]],
        {
            "xaxis": axis("optimizer steps"),
            # Losses fall by orders of magnitude.
            "yaxis": axis("", **(_LOG_AXIS if metric in _LOSSES else {})),
        },
    )


def _all_thin(results: Results, curves: dict[str, Curve]) -> list[Trace]:
    """One trace for each group's trials, after one for trials that did not run to their end."""
    grouped = {r.config.trial_id for group in results.groups for r in group.trials}
    traces = [_thin([c for trial_id, c in curves.items() if trial_id not in grouped], "@muted")]
    for group in results.groups:
        thin = [curves[r.config.trial_id] for r in group.trials if r.config.trial_id in curves]
        traces.append(_thin(thin, group_mark(results, group).colour))
    return traces


def _thin(curves: Sequence[Curve], colour: str) -> Trace:
    x: list[float | None] = []
    y: list[float | None] = []
    for curve in curves:
        x += [*(step for step, _ in curve), None]
        y += [*(value for _, value in curve), None]
    line = {"color": colour, "width": 0.9}
    quiet = {"hoverinfo": "skip", "opacity": 0.4}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, **quiet}


def _thick(results: Results, group: Group, curve: Curve, colour: str) -> Trace:
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [step for step, _ in curve],
        "y": [value for _, value in curve],
        "line": {"color": colour, "width": 2.6},
        "hovertemplate": f"{escape(group.label)}, {escape(results.name(group.best))}<br>"
        "step %{x}: %{y:.4g}<extra></extra>",
    }
    return marked(results, group.sweep, line)
