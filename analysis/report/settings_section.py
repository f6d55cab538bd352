"""Importance of each setting, as fANOVA tells it."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.report.charts import Chart, Figure, Key, axis
from analysis.report.cost import trials_by_recipe
from analysis.results.formatting import NAMES
from analysis.shown_sweeps import Results
from analysis.stats.importance import FEWEST_TRIALS, importances
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC, VALIDATION_LOSS
from trainables.records.schema import TrialRecord

# Okabe and Ito (2008).
_METRIC_COLOURS = {
    IN_DOMAIN_ACC: "#0072b2",
    VALIDATION_LOSS: "#0072b2",
    FORGETTING_MEAN: "#d55e00",
    OOD_ACC: "#009e73",
}


_MOST_CHARTS = 4

Importances = dict[str, dict[str, float]]
"""Metric to setting to share."""


def importance_figure(results: Results) -> Figure | None:
    """Importance of each setting for each result, by recipe; None if all have too few trials.

    Over several sweeps or recipes, what else differs between these would pass for noise.
    """
    measured_by_recipe = [(own, _shares(results, own)) for own in trials_by_recipe(results)]
    found = [(own, shares) for own, shares in measured_by_recipe if shares]
    if not found:
        return None
    shown = sorted(found, key=lambda each: -len(each[0]))[:_MOST_CHARTS]
    most = f" of the {len(shown)} recipes with the most of them" if len(shown) < len(found) else ""
    caption = (
        f"fANOVA of Optuna (Hutter et al. 2014) on complete trials{most}{results.more_stopped()}. "
        "Bars compare settings with one another: those of one result sum to 1 even where no "
        "setting explains anything. A setting can matter little because its searched range is "
        "narrow."
    )
    measured = {metric for _, shares in shown for metric in shares}
    keys = [
        Key(NAMES[metric], _METRIC_COLOURS[metric], "square")
        for metric in results.scores
        if metric in measured
    ]
    charts = tuple(_importance_chart(results, *each) for each in shown)
    return Figure(caption, charts, columns=2, legend=tuple(keys))


def _shares(results: Results, trials: Sequence[TrialRecord]) -> Importances:
    found = {metric: importances(trials, metric) for metric in results.scores}
    return {metric: shares for metric, shares in found.items() if shares}


def _importance_chart(results: Results, trials: Sequence[TrialRecord], found: Importances) -> Chart:
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
    config, whose = trials[0].config, results.whose(results.sweep(trials[0]))
    return Chart(
        f"importances-{config.trial_id}",
        f"{config.recipe_title}: importance of each setting, {len(trials)} trials{whose}",
        f"Bars of the importance of each setting relative to the others. {text}.",
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
    f"Importances need {FEWEST_TRIALS} complete trials of one recipe whose settings and results "
    "differ."
)
