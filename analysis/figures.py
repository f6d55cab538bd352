"""Figures for a paper or a README, as PNG, PDF or SVG."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC
from trainables.records import TrialStatus

_FULL_COLOUR = "#d55e00"  # vermilion, told from viridis by every kind of colour vision


def trade_off(trials: pd.DataFrame, base: dict[str, float], title: str) -> Figure:
    """What each trial gained in its domain against what it forgot, and against OOD accuracy.

    LoRA trials are coloured by rank, full fine-tuning and the base are marked.

    Args:
        trials: as from `load_trials`; complete trials are drawn.
        base: the base model's metrics.
        title: above the figure.
    """
    complete = trials[trials["status"] == TrialStatus.COMPLETE.value]
    sides = [key for key in (FORGETTING_MEAN, OOD_ACC) if key in complete]
    figure = Figure(figsize=(5.2 * len(sides), 4.2), layout="constrained", dpi=150)
    figure.suptitle(title)
    row = figure.subplots(1, len(sides), squeeze=False, sharey=True)[0]
    for axes, key in zip(row, sides, strict=True):
        _scatter(axes, complete, base, key)
    row[0].set_ylabel("in-domain accuracy")
    row[0].legend(loc="best")
    _rank_bar(figure, list(row), complete)
    return figure


def _rank_colours(trials: pd.DataFrame) -> tuple[list[float], BoundaryNorm]:
    """The ranks that occur, and a colour scale with one step for each."""
    ranks = sorted(trials.loc[trials["method"] == "lora", "lora/rank"].unique())
    return ranks, BoundaryNorm([i - 0.5 for i in range(len(ranks) + 1)], 256)


def _rank_bar(figure: Figure, row: list[Axes], trials: pd.DataFrame) -> None:
    ranks, norm = _rank_colours(trials)
    if ranks:
        scale = ScalarMappable(norm=norm, cmap="viridis")
        bar = figure.colorbar(scale, ax=row, ticks=range(len(ranks)), label="rank")
        bar.ax.set_yticklabels([f"{rank:g}" for rank in ranks])


def _scatter(axes: Axes, trials: pd.DataFrame, base: dict[str, float], key: str) -> None:
    lora = trials[trials["method"] == "lora"]
    full = trials[trials["method"] == "full"]
    if not lora.empty:
        ranks, norm = _rank_colours(trials)
        axes.scatter(
            lora[key],
            lora[IN_DOMAIN_ACC],
            c=[ranks.index(rank) for rank in lora["lora/rank"]],
            cmap="viridis",
            norm=norm,
            s=50,
            edgecolors="black",
            linewidths=0.4,
            label="LoRA",
        )
    if not full.empty:
        axes.scatter(full[key], full[IN_DOMAIN_ACC], marker="D", s=45, c=_FULL_COLOUR, label="full")
    axes.scatter(base[key], base[IN_DOMAIN_ACC], marker="*", s=160, c="black", label="base")
    axes.set_xlabel(
        "forgetting (base - tuned accuracy)" if key == FORGETTING_MEAN else "out-of-domain accuracy"
    )
    axes.grid(alpha=0.3)


def save(figure: Figure, file: Path) -> None:
    """Write the figure in the format its name ends in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
