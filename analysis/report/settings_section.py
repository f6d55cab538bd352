"""Importance of each setting, as fANOVA tells it."""

from __future__ import annotations

from analysis.report.charts import Chart, Figure, Key, axis, listed
from analysis.results.formatting import NAMES
from analysis.shown_sweeps import Results
from analysis.stats.importance import FEWEST_TRIALS, importances
from analysis.sweeps import Sweep
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC, VALIDATION_LOSS

# Okabe and Ito (2008).
_METRIC_COLOURS = {
    IN_DOMAIN_ACC: "#0072b2",
    VALIDATION_LOSS: "#0072b2",
    FORGETTING_MEAN: "#d55e00",
    OOD_ACC: "#009e73",
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
