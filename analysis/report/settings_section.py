"""All settings at once: parallel coordinates and importances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np

from analysis.report.charts import (
    FULL,
    Chart,
    Figure,
    Key,
    Trace,
    axis,
    hover,
    listed,
    rank_colours,
    rank_keys,
)
from analysis.results.formatting import NAMES, SHORT_NAMES, metric_name, metric_text, rate
from analysis.results.trial_columns import SETTINGS
from analysis.shown_sweeps import Results
from analysis.stats.importance import FEWEST_TRIALS, importances
from analysis.sweeps import Sweep
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC, VALIDATION_LOSS
from trainables.records.schema import TrialRecord

_TICKS, _MOST_TICKS = 4, 8
# Okabe and Ito (2008).
_METRIC_COLOURS = {
    IN_DOMAIN_ACC: "#0072b2",
    VALIDATION_LOSS: "#0072b2",
    FORGETTING_MEAN: "#d55e00",
    OOD_ACC: "#009e73",
}


@dataclass(frozen=True)
class _Axis:
    """One of the parallel axes.

    Attributes:
        key: of a setting, as in results.csv, or of a metric.
        is_log: whether the scale is logarithmic.
    """

    title: str
    key: str
    write: Callable[[float], str]
    is_log: bool = False

    def value(self, record: TrialRecord) -> float | None:
        """A trial's value; None if it has none."""
        found: Any = SETTINGS[self.key](record) if self.key in SETTINGS else record.metric(self.key)
        return None if found is None else float(found)


_AXES = (
    _Axis("rank", "lora/rank", "{:g}".format, True),
    _Axis("alpha", "lora/alpha", "{:g}".format, True),
    _Axis("learning<br>rate", "learning_rate", rate, True),
    _Axis("dropout", "lora/dropout", "{:g}".format),
    _Axis("samples<br>a step", "batch_size", "{:g}".format, True),
    _Axis("epochs", "epochs", "{:g}".format, True),
    _Axis("warm-up", "warmup", "{:g}".format),
    _Axis("weight<br>decay", "weight_decay", "{:g}".format),
    _Axis(SHORT_NAMES[IN_DOMAIN_ACC], IN_DOMAIN_ACC, "{:.2f}".format),
    _Axis(NAMES[VALIDATION_LOSS].replace(" ", "<br>"), VALIDATION_LOSS, "{:.2f}".format),
    _Axis(SHORT_NAMES[OOD_ACC], OOD_ACC, "{:.2f}".format),
    _Axis(SHORT_NAMES[FORGETTING_MEAN], FORGETTING_MEAN, "{:+z.2f}".format),
)


def parallel_figure(results: Results) -> Figure | None:
    """Each complete trial as a line over its settings and results; None for fewer than two."""
    trials = results.complete
    axes = [axis for axis in _AXES if axis.key in (*SETTINGS, *results.scores)]
    others = [key for key in results.judged_by if key not in results.scores]
    titles = ["<br>".join(map(escape, wrap(metric_name(key), 16))) for key in others]
    axes += [_Axis(t, k, partial(metric_text, k)) for t, k in zip(titles, others, strict=True)]
    shown = [axis for axis in axes if len({axis.value(r) for r in trials} - {None}) > 1]
    if len(trials) < 2 or len(shown) < 2:
        return None
    scales = [_Scale.over(axis, trials) for axis in shown]
    colours = rank_colours(results)
    traces = []
    for rank, colour in [*colours.items(), (None, FULL)]:
        for is_faint in (True, False):
            own = [r for r in trials if r.rank == rank and results.is_on_front(r) != is_faint]
            traces.append(_lines(results, own, scales, colour, is_faint))
    chart = Chart(
        "parallel",
        "Settings and results of every complete trial",
        f"Parallel coordinates of {len(trials)} trials over {', '.join(a.title for a in shown)}; "
        "trials of the Pareto front are drawn strongly.".replace("<br>", " "),
        [trace for trace in traces if trace["x"]],
        {
            "xaxis": {"visible": False, "range": [-0.35, len(shown) - 0.5], "fixedrange": True},
            "yaxis": {"visible": False, "range": [-0.08, 1.16], "fixedrange": True},
            "margin": {"b": 12, "t": 10},
            "shapes": [_stroke(i) for i in range(len(shown))],
            "annotations": [note for i, scale in enumerate(scales) for note in scale.notes(i)],
        },
        height=400,
    )
    caption = (
        "A line is a trial; strong lines are the Pareto front. Full fine-tuning has no rank "
        "and no alpha, so its lines begin at the learning rate. Touch a line for the trial."
    )
    return Figure(caption, (chart,), legend=tuple(rank_keys(results, "line", "line")))


@dataclass(frozen=True)
class _Scale:
    """An axis with the range of its values."""

    axis: _Axis
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, axis: _Axis, trials: Sequence[TrialRecord]) -> _Scale:
        values = sorted({value for r in trials if (value := axis.value(r)) is not None})
        low, high = values[0], values[-1]
        if axis.is_log and len(values) <= _MOST_TICKS:  # few, such as ranks
            return cls(axis, low, high, tuple(values))
        spaced = np.geomspace if axis.is_log else np.linspace
        return cls(axis, low, high, tuple(spaced(low, high, _TICKS).tolist()))

    def place(self, value: float) -> float:
        """Position on the axis: 0 is the lowest value, 1 the highest."""
        if self.axis.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def notes(self, position: int) -> list[Trace]:
        """The axis's title and tick labels."""
        base = {"x": position, "showarrow": False, "xref": "x", "yref": "y"}
        title = {**base, "y": 1.04, "yanchor": "bottom", "text": f"<b>{self.axis.title}</b>"}
        ticks = [
            {
                **base,
                "y": self.place(tick),
                "xanchor": "left",
                "xshift": 3,
                "text": self.axis.write(tick),
                "font": {"size": 10, "color": "@muted"},
                "bgcolor": "@paper",
                "opacity": 0.85,
            }
            for tick in self.ticks
        ]
        return [title, *ticks]


def _stroke(position: int) -> Trace:
    ends = {"x0": position, "x1": position, "y0": 0, "y1": 1}
    return {"type": "line", **ends, "line": {"color": "@muted", "width": 1}, "layer": "below"}


def _lines(
    results: Results,
    records: Sequence[TrialRecord],
    scales: Sequence[_Scale],
    colour: str,
    is_faint: bool,
) -> Trace:
    """Lines of several trials as one trace, with gaps between them."""
    x: list[int | None] = []
    y: list[float | None] = []
    texts: list[str] = []
    for record in records:
        values = [(i, scale, scale.axis.value(record)) for i, scale in enumerate(scales)]
        places = [(i, scale.place(value)) for i, scale, value in values if value is not None]
        x += [*(i for i, _ in places), None]
        y += [*(place for _, place in places), None]
        texts += [*[hover(results, record)] * len(places), ""]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": colour, "width": 1.1 if is_faint else 2.6},
        "opacity": 0.35 if is_faint else 0.95,
    }


def importance_figure(results: Results) -> Figure | None:
    """Importance of each LoRA setting for each result, by sweep; None if there are too few trials.

    Over the trials of several sweeps, what else differs between these would pass for noise.
    """
    found = [(sweep, own) for sweep in results.sweeps if (own := _importances(results, sweep))]
    if not found:
        return None
    counts = [(sweep, str(len(results.of(sweep, results.lora)))) for sweep, _ in found]
    caption = (
        f"fANOVA of Optuna (Hutter et al. 2014) on {listed(results, counts)} complete LoRA trials"
        f"{results.more_stopped()}. Bars compare settings with one another: those of one result "
        "sum to 1 even where no setting explains anything. A setting can matter little because its "
        "searched range is narrow."
    )
    measured = {metric for _, own in found for metric in own}
    shown = [metric for metric in results.scores if metric in measured]
    keys = [Key(NAMES[metric], _METRIC_COLOURS[metric], "square") for metric in shown]
    charts = tuple(_importance_chart(results, sweep, own) for sweep, own in found)
    return Figure(caption, charts, legend=tuple(keys))


Importances = dict[str, dict[str, float]]
"""Metric to setting to share."""


def _importances(results: Results, sweep: Sweep) -> Importances:
    trials = results.of(sweep, results.lora)
    found = {metric: importances(trials, metric) for metric in results.scores}
    return {metric: shares for metric, shares in found.items() if shares}


def _importance_chart(results: Results, sweep: Sweep, found: Importances) -> Chart:
    settings = dict.fromkeys(name for shares in found.values() for name in shares)
    names = sorted(settings, key=lambda name: sum(one.get(name, 0.0) for one in found.values()))
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "x": [shares.get(name, 0.0) for name in names],
            "marker": {"color": _METRIC_COLOURS[metric]},
            "hovertemplate": "%{y}: %{x:.2f}<extra>" + NAMES[metric] + "</extra>",
        }
        for metric, shares in reversed(found.items())
    ]
    text = "; ".join(
        f"{NAMES[m]}: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        for m, shares in found.items()
    )
    return Chart(
        "importances" if len(results.sweeps) == 1 else f"importances-{sweep.title}",
        f"Importance of each setting relative to the others, LoRA trials{results.whose(sweep)}",
        f"Bars of the importance of each setting. {text}.",
        traces,
        {
            "barmode": "group",
            "bargap": 0.35,
            "xaxis": axis("importance", range=[0, 1]),
            "yaxis": {"type": "category", "automargin": True, "showgrid": False},
        },
        height=80 + 70 * len(names),
    )


IMPORTANCE_LACKING = (
    f"Importances need {FEWEST_TRIALS} complete LoRA trials whose settings and results differ."
)
