"""The panels that compare a sweep's runs in W&B, shared by the workspace and the report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr

from analysis.results.formatting import NAMES, score_metrics
from analysis.results.wandb_names import BASE_GROUP, SETTING_GROUP, STRENGTH, over_strength
from trainables import metric_keys

_RECIPE = wr.Config("recipe")
_GROUPS = {"recipe": _RECIPE, "recipe and capacity": wr.Config(SETTING_GROUP)}
_SETTINGS = {
    "recipe": _RECIPE,
    "capacity": wr.Config("capacity"),
    "learning rate": wr.Config(metric_keys.LEARNING_RATE),
}
_GRID_WIDTH = 24  # columns of a report's panel grid


@dataclass(frozen=True)
class PanelGroup:
    """Panels that answer one question.

    Attributes:
        panels: by what each shows.
        shown: groups of settings whose runs are shown; all the sweep's runs if empty. Only a
            report honours it; a workspace has one set of runs for all its panels.
    """

    title: str
    panels: dict[str, Any]
    shown: tuple[str, ...] = ()


def panel_groups(
    logged: Collection[str],
    runs: int,
    tables: Collection[str],
    settings: Sequence[str],
    scaled: Collection[str] = (),
) -> list[PanelGroup]:
    """The groups, without panels for what the sweep does not log.

    Args:
        logged: keys of the metrics that the trials log.
        runs: number of runs, so that a panel shows all of them.
        tables: keys of the tables about the models' internals, if any were logged.
        settings: groups of the relevant trials: complete ones that are not repeats.
        scaled: keys of the metrics that trials have at other strengths of their update.
    """
    scores = [key for key in score_metrics(logged) if key in logged]
    forgetting = [key for key in scores if key == metric_keys.FORGETTING_MEAN]
    accuracies = [key for key in scores if key not in forgetting]
    curves = [key for key in NAMES if key in logged]
    groups = [
        PanelGroup("Trade-off", {"parallel coordinates": _parallel(scores)} | _scatters(scores)),
        PanelGroup("Recipes and capacities", _bars(accuracies, runs), (*settings, BASE_GROUP)),
        # Without the base, whose forgetting is 0 by definition.
        PanelGroup(
            "Recipes, capacities and forgetting",
            _bars(forgetting, runs),
            tuple(settings),
        ),
        PanelGroup(
            "Strength of the update",
            dict(_over_strength(key, runs) for key in scores if key in scaled),
            tuple(settings),
        ),
        PanelGroup("Learning and forgetting", dict(_curve(key, runs) for key in curves)),
        PanelGroup(
            "What matters",
            {
                f"parameter importance for {NAMES[key]}": wr.ParameterImportancePlot(key)
                for key in scores
            },
        ),
        PanelGroup(
            "Inside the models",
            {table: wr.WeavePanelSummaryTable(table_name=table) for table in tables},
        ),
    ]
    return [group for group in groups if group.panels]


def laid_out(groups: list[PanelGroup]) -> list[PanelGroup]:
    """The panels, placed side by side on a report's grid."""
    for group in groups:
        across = min(3, len(group.panels))
        width = _GRID_WIDTH // across
        for position, panel in enumerate(group.panels.values()):
            row, column = divmod(position, across)
            panel.layout = wr.Layout(x=column * width, y=row * 9, w=width, h=9)
    return groups


def _parallel(scores: list[str]) -> wr.ParallelCoordinatesPlot:
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            metric=metric, display_name=name, log=metric is not _RECIPE or None
        )
        for name, metric in _SETTINGS.items()
    ]
    columns += [
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.SummaryMetric(key),
            display_name=NAMES[key],
            # Good is up on every axis.
            inverted=metric_keys.METRICS[key].better == "min",
        )
        for key in scores
    ]
    return wr.ParallelCoordinatesPlot(title="Settings and scores", columns=columns)


def _scatters(scores: list[str]) -> dict[str, Any]:
    gain = metric_keys.domain_metric(scores)
    return {
        f"scatter of {NAMES[gain]} against {NAMES[key]} by recipe": wr.ScatterPlot(
            title=f"{NAMES[gain]} against {NAMES[key]}, coloured by recipe",
            x=wr.SummaryMetric(key),
            y=wr.SummaryMetric(gain),
            z=_RECIPE,
        )
        for key in scores
        if key != gain and gain in scores
    }


def _bars(scores: list[str], runs: int) -> dict[str, Any]:
    """Each score by recipe, then by recipe and capacity."""
    return {
        f"{NAMES[key]} by {by}": wr.BarPlot(
            title=f"{NAMES[key]} by {by} (mean, minimum to maximum)",
            metrics=[key],
            orientation="v",
            groupby=group,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=runs,
            max_bars_to_show=runs,
        )
        for by, group in _GROUPS.items()
        for key in scores
    }


def _curve(key: str, runs: int) -> tuple[str, Any]:
    by = "recipe and capacity"
    return f"{NAMES[key]} over steps by {by}", wr.LinePlot(
        title=f"{NAMES[key]} by {by}",
        x=metric_keys.GLOBAL_STEP,
        y=[key],
        title_x="optimizer step",
        title_y=f"{NAMES[key]} ({metric_keys.METRICS[key].unit})",
        groupby=_GROUPS[by],
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=runs,
    )


def _over_strength(key: str, runs: int) -> tuple[str, Any]:
    """One line a trial: what a trial gains where another forgets would vanish in their mean."""
    return f"{NAMES[key]} over strengths", wr.LinePlot(
        title=f"{NAMES[key]} of base + strength x update",
        x=STRENGTH,
        y=[over_strength(key)],
        title_x="strength",
        title_y=f"{NAMES[key]} ({metric_keys.METRICS[key].unit})",
        max_runs_to_show=runs,
    )
