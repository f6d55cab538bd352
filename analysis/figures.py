"""Figures for a paper or a README, as PNG, PDF or SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.capacity_axis import CapacityAxis, capacity_axis
from analysis.recipe_marks import ACCENT, Mark, are_many, recipe_marks
from analysis.results.formatting import axis_title
from analysis.results.sample_size import FEWEST_OF_CAPACITY
from analysis.shown_sweeps import Group, Results
from analysis.stats.intervals import error_bars
from analysis.sweeps import bases
from trainables.errors import Fault, UserError
from trainables.metric_keys import FORGETTING_MEAN, OOD_ACC
from trainables.records.schema import TrialRecord
from trainables.storage.disk import whole_file

_MARKERS = {"circle": "o", "diamond": "D", "square": "s"}
_INCHES_OF_LABEL, _INCHES_OF_LINE = 2.4, 0.18
_BREAKS = "breaks a constraint"
_FONTS = {"pdf.fonttype": 42, "ps.fonttype": 42}
"""TrueType: many a publisher refuses the Type 3 fonts that matplotlib embeds by itself."""


def trade_off(results: Results) -> Figure | None:
    """Plot the gain in the domain against forgetting, OOD accuracy and every other objective.

    Trials are coloured by recipe; the base, the Pareto front, whose capacities are written beside
    it, and the recommended trial are marked. None if no complete trial measured any of these.
    """
    sides = results.plotted_against
    if not sides:
        return None
    figure = Figure(figsize=(5.2 * len(sides), 4.2), layout="constrained", dpi=150)
    figure.suptitle(results.sweeps[0].name)
    row = figure.subplots(1, len(sides), squeeze=False, sharey=True)[0]
    for axes, key in zip(row, sides, strict=True):
        _scatter(axes, results, key)
    row[0].set_ylabel(axis_title(results.gain))
    _add_legend(figure, row[0], results)
    return figure


def _draw_curves(axes: Axes, results: Results, key: str) -> None:
    """A line a trial, from the base through its strengths, and a cross where it is repaired."""
    for trial in results.complete:
        base = results.sweep(trial).base.metrics
        found = [base, *(view.metrics for view in trial.curve)] if trial.points else []
        ends = [(m[key], m[results.gain]) for m in found if m.keys() >= {key, results.gain}]
        if len(ends) > 1:
            x, y = zip(*ends, strict=True)
            colour = recipe_marks(results)[trial.config.recipe].colour
            axes.plot(x, y, color=colour, lw=0.5, alpha=0.5, marker=".", ms=3, zorder=1)
    if repaired := [view for trial in results.complete for view in trial.repaired]:
        axes.scatter(
            _values(repaired, key),
            _values(repaired, results.gain),
            s=20,
            c=[recipe_marks(results)[view.config.recipe].colour for view in repaired],
            marker="P",
            alpha=0.7,
            zorder=1,
            label="repaired",
        )


def _scatter(axes: Axes, results: Results, key: str) -> None:
    _draw_curves(axes, results, key)
    shown = [r for r in results.complete if None not in (r.metric(key), r.metric(results.gain))]
    for recipe, mark in recipe_marks(results).items():
        own = [record for record in shown if record.config.recipe == recipe]
        if own:
            axes.scatter(
                _values(own, key),
                _values(own, results.gain),
                marker=_MARKERS[mark.symbol],
                s=45,
                c=mark.colour,
                edgecolors="black",
                linewidths=0.4,
                label=own[0].config.recipe_title,
            )
    _ring(axes, results, key)
    _write_capacities(axes, results, key)
    # The base has no cost, such as training time, and so no star against it.
    for (of_key, gain), name in bases(results.sweeps, key, results.gain).items():
        axes.scatter(of_key, gain, marker="*", s=160, c="black", label=name)
    axes.set_xlabel(axis_title(key))
    axes.grid(alpha=0.3)


def _write_capacities(axes: Axes, results: Results, key: str) -> None:
    """Beside the front, of recipes that have several."""
    for record in results.front:
        x, y = record.metric(key), record.metric(results.gain)
        has_several = len(results.sized(record.config.recipe, results.sweep(record))) > 1
        if has_several and x is not None and y is not None:
            text = str(record.config.capacity)
            axes.annotate(text, (x, y), (7, -3), textcoords="offset points", fontsize=7)


def _ring(axes: Axes, results: Results, key: str) -> None:
    """Ring the trials of the front, and the recommended one, as the report does."""
    around = [("Pareto front", results.front, 130, "black", 1.3)]
    if taken := results.recommendation:
        around.append((taken.word, [taken.trial], 260, ACCENT, 2.0))
    for label, records, size, colour, width in around:
        if records:
            x, y = _values(records, key), _values(records, results.gain)
            axes.scatter(
                x, y, s=size, facecolors="none", edgecolors=colour, linewidths=width, label=label
            )


def _values(records: Sequence[TrialRecord], key: str) -> list[float]:
    """NaN, which is not drawn, where a value was not finite and so not kept."""
    values = (record.metric(key) for record in records)
    return [math.nan if value is None else value for value in values]


def capacity_curves(results: Results) -> Figure | None:
    """Plot gain, OOD and forgetting of the best by capacity, what has none as a band.

    Error bars and bands are 95 % intervals over items that hold for all trials that the best was
    picked from. The best of too few trials is hollow, and no line joins it. Of a few recipes dots
    are all complete trials. None if no recipe has a capacity.
    """
    across = capacity_axis(results)
    metrics = (results.gain, OOD_ACC, FORGETTING_MEAN)
    shown = {
        metric: groups
        for metric in metrics
        if (groups := [each for each in results.groups if each.best.metric(metric) is not None])
    }
    if across is None or not shown:
        return None
    figure = Figure(figsize=(3.4 * len(shown), 3.2), layout="constrained", dpi=150)
    row = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (key, groups) in zip(row, shown.items(), strict=True):
        _capacity_curves(axes, results, across, groups, key)
    _add_legend(figure, row[0], results)
    return figure


def _add_legend(figure: Figure, axes: Axes, results: Results) -> None:
    """In the first plot or, of many recipes, below all, where the figure grows by its lines."""
    handles, labels = axes.get_legend_handles_labels()
    if not are_many(results):
        axes.legend(loc="best", fontsize=8)
        return
    columns = int(figure.get_figwidth() // _INCHES_OF_LABEL)
    lines = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + _INCHES_OF_LINE * (lines + 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def _capacity_curves(
    axes: Axes, results: Results, across: CapacityAxis, groups: Sequence[Group], key: str
) -> None:
    marks = recipe_marks(results)
    curves: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if across.place(group.best) is None:
            _band(axes, results, group, key, marks[group.recipe])
        else:
            curves.setdefault((group.recipe, group.sweep.title), []).append(group)
    for (recipe, _), own in curves.items():
        _curve(axes, results, across, own, key, marks[recipe])
    breaking = [
        group.best for own in curves.values() for group in own if not _keeps(results, group)
    ]
    if breaking:
        x = [_at(across, record) for record in breaking]
        axes.plot(x, _values(breaking, key), "kx", zorder=3, label=_BREAKS)
    for (value,), name in bases(results.sweeps, key).items():
        axes.axhline(value, color="black", linestyle=":", label=name)
    axes.set_xscale("log", base=2 if across.ticks else 10)
    if across.ticks:
        axes.set_xticks([*across.ticks], [*across.ticks.values()])
        axes.minorticks_off()
    axes.set_xlabel(across.title)
    axes.set_ylabel(axis_title(key))
    axes.grid(alpha=0.3)


def _curve(
    axes: Axes,
    results: Results,
    across: CapacityAxis,
    groups: Sequence[Group],
    key: str,
    mark: Mark,
) -> None:
    title = f"{groups[0].title}{results.whose(groups[0].sweep)}"
    if not are_many(results):
        trials = [record for group in groups for record in group.trials]
        x = [_at(across, record) for record in trials]
        axes.plot(x, _values(trials, key), ".", color=mark.colour, alpha=0.3)
    few = f"{title}, of fewer than {FEWEST_OF_CAPACITY}"
    for line, label, face, is_tried in (
        ("-", title, mark.colour, True),
        ("", few, "white", False),
    ):
        own = [group for group in groups if group.is_tried == is_tried]
        values = _values([group.best for group in own], key)
        intervals = [results.items.interval(group.best, key, group.picked_from) for group in own]
        if own:
            axes.errorbar(
                [_at(across, group.best) for group in own],
                values,
                yerr=error_bars(values, intervals),
                fmt=f"{_MARKERS[mark.symbol]}{line}",
                color=mark.colour,
                markerfacecolor=face,
                capsize=3,
                label=label,
            )


def _band(axes: Axes, results: Results, group: Group, key: str, mark: Mark) -> None:
    """The best of what has no place on the axis, with its interval."""
    text = "" if _keeps(results, group) else f", {_BREAKS}"
    label = f"{group.label}, of {group.picked_from}{text}"
    axes.axhline(group.best.metric(key) or 0.0, color=mark.colour, linewidth=1.2, label=label)
    interval = results.items.interval(group.best, key, group.picked_from)
    if interval:
        axes.axhspan(interval.low, interval.high, color=mark.colour, alpha=0.16, linewidth=0)


def _keeps(results: Results, group: Group) -> bool:
    return results.keeps_constraints(group.best)


def _at(across: CapacityAxis, record: TrialRecord) -> float:
    place = across.place(record)
    return math.nan if place is None else place


def save_all(results: Results, folder: Path) -> list[Path]:
    """Write every available figure as PDF and PNG; returns the files."""
    figures = {"trade_off": trade_off(results), "capacity_curves": capacity_curves(results)}
    files = [
        (figure, folder / f"{name}.{suffix}")
        for name, figure in figures.items()
        if figure is not None
        for suffix in ("pdf", "png")
    ]
    for figure, file in files:
        save(figure, file)
    return [file for _, file in files]


def save(figure: Figure, file: Path) -> None:
    """Write the figure in the format its name ends in, in place of a link that has the name.

    Raises:
        UserError: the format is unknown, or the file cannot be written.
    """
    try:
        with whole_file(file) as unfinished, rc_context(_FONTS):
            kind = file.suffix.removeprefix(".")
            figure.savefig(unfinished, bbox_inches="tight", format=kind)
    except (OSError, ValueError) as error:
        raise UserError([Fault("--to", f"cannot be written: {file} ({error})")]) from error
