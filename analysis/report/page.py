"""The page: everything about the sweeps in one self-contained HTML file."""

from __future__ import annotations

import re
import shlex
import time
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.comparability import notices
from analysis.conclusions import conclude
from analysis.conclusions.conclusion import p_number
from analysis.paper_table import (
    UNLIKE_BASE,
    UNLIKE_REFERENCE,
    cell_text,
    paper_table,
    summary_texts,
)
from analysis.report.answer import answer
from analysis.report.capacity_section import capacity_figure, rate_figure, step_size_figure
from analysis.report.charts import Figure
from analysis.report.cost import costs, failures, gpu_hours, none_failed, number, trial_hours
from analysis.report.curves import curves_figure
from analysis.report.inspection_section import inspection_figures
from analysis.report.recipe_section import recipe_table
from analysis.report.settings_section import IMPORTANCE_LACKING, importance_figure
from analysis.report.strength_section import strength_table
from analysis.report.task_section import flips, task_figure
from analysis.report.trade_off_section import hypervolume_figure, trade_off_figure
from analysis.results.formatting import (
    NOT_ENDED,
    SHORT_NAMES,
    count_trials,
    how_many,
    metric_name,
    metric_text,
    setting_in_full,
)
from analysis.results.recommendation import numbers_text
from analysis.shown_sweeps import Results
from trainables.config import ROLES
from trainables.metric_keys import role_mean
from trainables.records.schema import TrialRecord, TrialStatus

_MOST_CONCLUSIONS = 16
"""Of more, those that are open are folded."""


def render(results: Results) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("analysis.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "metric": metric_text,
        "headings": _headings,
        "how_many": how_many,
        "json": _json,
        "number": number,
        "p_number": p_number,
        "quoted": shlex.quote,
    }
    return environment.get_template("page.html.jinja").render(
        results=results,
        title=", ".join(sweep.title for sweep in results.sweeps),
        plotly=Markup(_plotly()),  # noqa: S704 - the library's own code
        **_contents(results),
    )


def _contents(results: Results) -> dict[str, Any]:
    recommended = results.recommendation.trial if results.recommendation else None
    table = paper_table(results)
    return {
        "notices": notices(results.sweeps),
        "answer": answer(results),
        "recipes": recipe_table(results),
        "strengths": strength_table(results),
        "conclusions": conclude(results),
        "most_conclusions": _MOST_CONCLUSIONS,
        "figures": {
            "trade_off": trade_off_figure(results),
            "hypervolume": hypervolume_figure(results),
            "capacities": capacity_figure(results),
            "rates": rate_figure(results),
            "step_size": step_size_figure(results),
            "importances": importance_figure(results),
            "curves": curves_figure(results),
            "tasks": task_figure(results),
        },
        "inspection": inspection_figures(results),
        "importance_lacking": IMPORTANCE_LACKING,
        "table": table,
        "cell_text": cell_text,
        "summary_texts": summary_texts,
        "marks": (UNLIKE_BASE, UNLIKE_REFERENCE),
        "flips": flips(results, recommended) if recommended else [],
        "costs": costs(results),
        "gpu_hours": gpu_hours(results),
        "trial_hours": trial_hours(results),
        "failures": failures(results),
        "none_failed": none_failed(results),
        "counted": count_trials(results.trials),
        "trials": [
            (results.name(record), setting_in_full(record), _ended(record), record)
            for record in results.trials
        ],
        "role_names": {role: SHORT_NAMES[role_mean(role)] for role in ROLES},
        "scores": _scores(results),
        "began": _began(results),
        "made": _when(time.time()),
        "numbers_text": numbers_text,
        "when": _when,
    }


def _scores(results: Results) -> dict[str, str]:
    """The names of what trials are judged by, of all that one of them has."""
    trials, keys = results.trials, results.judged_by
    measured = [key for key in keys if any(r.metric(key) is not None for r in trials)]
    return {key: SHORT_NAMES.get(key) or metric_name(key) for key in measured}


def _began(results: Results) -> str:
    """When the sweep began; of several the first and the last."""
    times = sorted(sweep.record.created for sweep in results.sweeps)
    return " to ".join(dict.fromkeys(_when(each) for each in (times[0], times[-1])))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _ended(record: TrialRecord) -> str:
    """How it ended, as far as its record tells: the driver may be gone."""
    return NOT_ENDED if record.status is TrialStatus.RUNNING else record.status.in_words


def _json(figure: Figure) -> Markup:
    """The charts as JSON for the page's script, safe inside its element whatever they contain."""
    charts = {chart.key: chart.json() for chart in figure.charts}
    return htmlsafe_json_dumps(charts, allow_nan=False)


def _headings(sections: Markup) -> list[tuple[str, Markup]]:
    """Key and heading of each section that the page has."""
    found = re.findall(r'<section id="([\w-]+)">\s*<h2>(.+?)</h2>', sections)
    return [(key, Markup(heading)) for key, heading in found]  # noqa: S704 - escaped in the page


def _plotly() -> str:
    """Plotly's code, escaped so that it cannot close its script element."""
    code: str = get_plotlyjs()
    return code.replace("</script", "<\\/script")
