"""Figures for a paper or a README, as PNG, PDF or SVG."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.pyplot import get_cmap

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
    for axes, key in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        _scatter(axes, complete, base, key)
    return figure


def _scatter(axes: Axes, trials: pd.DataFrame, base: dict[str, float], key: str) -> None:
    lora = trials[trials["method"] == "lora"]
    full = trials[trials["method"] == "full"]
    if not lora.empty:
        ranks = sorted(lora["lora/rank"].unique())
        position = {rank: index for index, rank in enumerate(ranks)}
        norm = BoundaryNorm([index - 0.5 for index in range(len(ranks) + 1)], 256)
        points = axes.scatter(
            lora[key],
            lora[IN_DOMAIN_ACC],
            c=[position[rank] for rank in lora["lora/rank"]],
            cmap=get_cmap("viridis"),
            norm=norm,
            s=45,
            edgecolors="black",
            linewidths=0.4,
            label="LoRA",
        )
        bar = axes.figure.colorbar(points, ax=axes, ticks=range(len(ranks)), label="rank")
        bar.ax.set_yticklabels([f"{rank:g}" for rank in ranks])
    if not full.empty:
        axes.scatter(
            full[key], full[IN_DOMAIN_ACC], marker="D", s=45, c=_FULL_COLOUR, label="full"
        )
    axes.scatter(base[key], base[IN_DOMAIN_ACC], marker="*", s=160, c="black", label="base")
    axes.set_xlabel(
        "forgetting (base - tuned accuracy)" if key == FORGETTING_MEAN else "out-of-domain accuracy"
    )
    axes.set_ylabel("in-domain accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def save(figure: Figure, file: Path) -> None:
    """Write the figure in the format its name ends in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
