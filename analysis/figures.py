"""Figures for a paper or a README, as PNG, PDF or SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from analysis.results.formatting import axis_title
from analysis.results.sample_size import FEWEST_OF_RANK
from analysis.shown_sweeps import Group, Results
from analysis.stats.intervals import error_bars
from analysis.sweeps import bases
from trainables.errors import Fault, UserError
from trainables.records.schema import TrialRecord
from trainables.storage.disk import whole_file

_BLUE = "#2b6f9f"
_FULL_COLOUR = "#d55e00"  # vermilion, distinct from viridis for every kind of colour vision
_BREAKS = "breaks a constraint"
_FONTS = {"pdf.fonttype": 42, "ps.fonttype": 42}
"""TrueType: many a publisher refuses the Type 3 fonts that matplotlib embeds by itself."""


def trade_off(results: Results) -> Figure | None:
    """Plot the gain in the domain against forgetting, OOD accuracy and every other objective.

    LoRA trials are coloured by rank; full fine-tuning, the base, the Pareto front and the
    recommended trial are marked. None if no complete trial measured any of these.
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
    row[0].legend(loc="best")
    if results.lora:
        ranks, norm = _rank_colours(results)
        scale = ScalarMappable(norm=norm, cmap="viridis")
        bar = figure.colorbar(scale, ax=list(row), ticks=range(len(ranks)), label="rank")
        bar.ax.set_yticklabels([str(rank) for rank in ranks])
    return figure


def _rank_colours(results: Results) -> tuple[list[int], BoundaryNorm]:
    """The ranks present, and a colour scale with one step for each."""
    ranks = sorted({record.rank for record in results.lora if record.rank is not None})
    return ranks, BoundaryNorm([i - 0.5 for i in range(len(ranks) + 1)], 256)


def _scatter(axes: Axes, results: Results, key: str) -> None:
    shown = [r for r in results.complete if None not in (r.metric(key), r.metric(results.gain))]
    lora = [record for record in shown if record.rank is not None]
    full = [record for record in shown if record.rank is None]
    if lora:
        ranks, norm = _rank_colours(results)
        axes.scatter(
            _values(lora, key),
            _values(lora, results.gain),
            c=[ranks.index(record.rank or 0) for record in lora],
            cmap="viridis",
            norm=norm,
            s=50,
            edgecolors="black",
            linewidths=0.4,
            label="LoRA",
        )
    if full:
        x, y = _values(full, key), _values(full, results.gain)
        axes.scatter(x, y, marker="D", s=45, c=_FULL_COLOUR, label="full")
    _ring(axes, results, key)
    # The base has no cost, such as training time, and so no star against it.
    for (of_key, gain), name in bases(results.sweeps, key, results.gain).items():
        axes.scatter(of_key, gain, marker="*", s=160, c="black", label=name)
    axes.set_xlabel(axis_title(key))
    axes.grid(alpha=0.3)


def _ring(axes: Axes, results: Results, key: str) -> None:
    """Ring the trials of the front, and the recommended one, as the report does."""
    around = [("Pareto front", results.front, 130, "black", 1.3)]
    if taken := results.recommendation:
        around.append((taken.word, [taken.trial], 260, _FULL_COLOUR, 2.0))
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


def rank_curves(results: Results) -> Figure | None:
    """Plot gain, OOD and forgetting of the best by rank, with full fine-tuning as a band.

    Error bars and band are 95 % intervals over items that hold for all trials that the best was
    picked from; how many those are is written beside each rank. A rank of too few trials is a
    square that no line joins. A best that breaks a constraint is hollow. Dots are all complete LoRA
    trials. None without LoRA trials.
    """
    shown = results.over_ranks()
    if not shown:
        return None
    figure = Figure(figsize=(3.4 * len(shown), 3.2), layout="constrained", dpi=150)
    row = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (key, groups) in zip(row, shown.items(), strict=True):
        _rank_curve(axes, results, groups, key)
    row[0].legend(loc="best", fontsize=8)
    return figure


def _rank_curve(axes: Axes, results: Results, lora: Sequence[Group], key: str) -> None:
    ranks = [group.rank or 0 for group in lora]
    trials = [record for group in lora for record in group.trials]
    at_ranks = [record.rank or 0 for record in trials]
    axes.plot(at_ranks, _values(trials, key), ".", color="grey", alpha=0.4)
    apart = f"LoRA, of fewer than {FEWEST_OF_RANK}"
    for form, label, is_tried in (("o-", "LoRA", True), ("s", apart, False)):
        own = [group for group in lora if group.is_tried == is_tried]
        values = _values([group.best for group in own], key)
        intervals = [results.items.interval(group.best, key, group.picked_from) for group in own]
        at, bars = [group.rank or 0 for group in own], error_bars(values, intervals)
        if own:
            axes.errorbar(at, values, yerr=bars, fmt=form, color=_BLUE, capsize=3, label=label)
    breaking = [group.best for group in lora if not results.keeps_constraints(group.best)]
    if breaking:
        x, y = [record.rank or 0 for record in breaking], _values(breaking, key)
        axes.plot(x, y, "o", color=_BLUE, markerfacecolor="white", zorder=3, label=_BREAKS)
    full = results.full(results.sweeps[0])
    value = full.best.metric(key) if full else None
    if full and value is not None:
        text = "" if results.keeps_constraints(full.best) else f", {_BREAKS}"
        label = f"full, of {full.picked_from}{text}"
        axes.axhline(value, color=_FULL_COLOUR, linewidth=1.2, label=label)
        interval = results.items.interval(full.best, key, full.picked_from)
        if interval:
            axes.axhspan(interval.low, interval.high, color=_FULL_COLOUR, alpha=0.16, linewidth=0)
    for (value,), name in bases(results.sweeps, key).items():
        axes.axhline(value, color="black", linestyle=":", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [f"{group.rank}\nof {group.picked_from}" for group in lora])
    axes.minorticks_off()
    axes.set_xlabel("rank, best of so many trials")
    axes.set_ylabel(axis_title(key))
    axes.grid(alpha=0.3)


def save_all(results: Results, folder: Path) -> list[Path]:
    """Write every available figure as PDF and PNG; returns the files."""
    figures = {"trade_off": trade_off(results), "rank_curves": rank_curves(results)}
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
