"""What changed inside the models: updates by layer and module, attention by layer and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from analysis.inspect_models import inspected
from analysis.recipe_marks import recipe_marks
from analysis.report.charts import (
    Chart,
    Figure,
    Trace,
    axis,
    heatmap,
    hover,
    point_keys,
    point_trace,
    recipe_keys,
)
from analysis.results.formatting import axis_title, how_many
from analysis.shown_sweeps import Results
from trainables.inspection.inspection_records import (
    MOST_SINGULAR_VALUES,
    ROUNDED,
    InspectionRecord,
    is_rounded,
)
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.schema import TrialRecord

_MOST_CELLS_WITH_TEXT = 70
_MOST_MAPS = 3

Inspected = list[tuple[TrialRecord, InspectionRecord]]


def inspection_figures(results: Results) -> list[Figure]:
    """Heat maps, spectra and drift; empty if no trial was inspected."""
    seen = [
        (record, inspection)
        for sweep in results.sweeps
        for record, inspection in inspected(sweep, results.of(sweep, results.complete))
        if inspection.matrices
    ]
    shown = _to_compare(results, seen)
    made = (
        _update_maps(results, shown),
        _attention_maps(results, shown),
        _curves(results, seen),
        _against_forgetting(results, seen),
    )
    return [figure for figure in made if figure is not None]


def _to_compare(results: Results, seen: Inspected) -> Inspected:
    """The recommended trial, the best of other recipes, then the best of other capacities.

    Largest capacities first, and those of its own sweep before others.
    """
    if results.recommendation is None:
        return []
    taken = results.recommendation.trial
    own = results.sweep(taken)
    largest_first = [*reversed(results.groups)]
    ordered = sorted(largest_first, key=lambda group: group.sweep is not own)
    first = {group.recipe: group for group in reversed(ordered)}
    first.pop(taken.config.recipe, None)
    groups = sorted(ordered, key=lambda group: first.get(group.recipe) is not group)
    wanted = dict.fromkeys(r.config.trial_id for r in (taken, *(g.best for g in groups)))
    by_id = {record.config.trial_id: (record, inspection) for record, inspection in seen}
    return [by_id[trial_id] for trial_id in wanted if trial_id in by_id][:_MOST_MAPS]


def _name(results: Results, record: TrialRecord) -> str:
    return f"{results.name(record)} ({record.config.group_label})"


def _update_maps(results: Results, shown: Inspected) -> Figure | None:
    if not shown:
        return None
    charts = []
    most = max(m.relative_norm or 0.0 for _, inspection in shown for m in inspection.matrices)
    for record, inspection in shown:
        modules = list(dict.fromkeys(matrix.module for matrix in inspection.matrices))
        layers = sorted({matrix.layer for matrix in inspection.matrices})
        norms = {(m.layer, m.module): m.relative_norm for m in inspection.matrices}
        values = [[norms.get((layer, module)) for module in modules] for layer in layers]
        labels = _short(modules)
        title = f"Update of {_name(results, record)}"
        charts.append(_map(f"norm-{record.config.trial_id}", title, labels, layers, values, most))
    caption = (
        "Relative norm of the update, norm(dW) / norm(W0), by layer and module; one scale for all. "
        "Measures of weights are diagnostics: they predict forgetting less well than KL does "
        "(arXiv 2509.04259)."
    )
    return Figure(caption, tuple(charts), columns=3)


def _short(modules: Sequence[str]) -> list[str]:
    """Shorten dotted names to their last part, if they remain distinct."""
    last = [module.rpartition(".")[2] for module in modules]
    return last if len(set(last)) == len(last) else list(modules)


def _attention_maps(results: Results, shown: Inspected) -> Figure | None:
    with_attention = [(record, inspection) for record, inspection in shown if inspection.attention]
    if not with_attention:
        return None
    most = max(max(layer.js) for _, inspection in with_attention for layer in inspection.attention)
    charts = []
    for record, inspection in with_attention:
        heads = [str(head) for head in range(max(len(layer.js) for layer in inspection.attention))]
        layers = [layer.layer for layer in inspection.attention]
        values = [list(layer.js) for layer in inspection.attention]
        title = f"Attention of {_name(results, record)}"
        chart = _map(f"attention-{record.config.trial_id}", title, heads, layers, values, most)
        chart.layout["xaxis"] |= axis("head", tickangle=0)
        charts.append(chart)
    _, first = with_attention[0]
    caption = (
        "Attention drift: Jensen-Shannon divergence in bits between the attention of base and "
        f"tuned model, by layer and head, over {first.tokens:,} tokens of {first.prompts} prompts."
    )
    return Figure(caption, tuple(charts), columns=3)


def _map(
    key: str,
    title: str,
    columns: Sequence[str],
    layers: Sequence[int],
    values: Sequence[Sequence[float | None]],
    most: float,
) -> Chart:
    cells = len(columns) * len(layers)
    texts = [["" if v is None else f"{v:.2f}" for v in row] for row in values]
    trace = heatmap(
        columns,
        [str(layer) for layer in layers],
        values,
        texts=texts if cells <= _MOST_CELLS_WITH_TEXT else None,
    )
    return Chart(
        key,
        title,
        f"Heat map of {title} over {len(layers)} layers and {len(columns)} columns, at most "
        f"{max((v for row in values for v in row if v is not None), default=0):.3f}.",
        [{**trace, "zmin": 0, "zmax": most}],
        {
            "xaxis": {"type": "category", "tickangle": -35, "showgrid": False},
            "yaxis": axis("layer", type="category", showgrid=False),
        },
        height=130 + max(30 * min(len(layers), 8), 11 * len(layers)),
    )


def _curves(results: Results, seen: Inspected) -> Figure | None:
    if not seen:
        return None
    is_cut = any(matrix.is_cut for _, inspection in seen for matrix in inspection.matrices)
    shown = f"first {MOST_SINGULAR_VALUES} singular values" if is_cut else "singular values"
    charts = [
        Chart(
            "spectra",
            f"{shown.capitalize()} of the update, mean over matrices",
            f"Lines of the mean normalised {shown} of {how_many(len(seen), 'trial')}.",
            _lines(results, seen, _spectrum),
            {
                "xaxis": axis("index", type="log", dtick="D2"),
                "yaxis": axis("share of the largest", rangemode="tozero"),
            },
        )
    ]
    if any(inspection.representation for _, inspection in seen):
        charts.append(
            Chart(
                "representation",
                "Representation drift by layer, 1 - linear CKA",
                f"Lines of the drift of hidden states by layer, of {how_many(len(seen), 'trial')}.",
                _lines(results, seen, _representation),
                {"xaxis": axis("layer"), "yaxis": axis("1 - CKA", rangemode="tozero")},
            )
        )
    ends = f", and every line with the {shown}" if is_cut else ""
    rounded = f"; {ROUNDED}" if any(is_rounded(record.config) for record, _ in seen) else ""
    caption = (
        "Singular values: how evenly an update spreads over directions; that of a low-rank "
        f"adapter ends at its rank{ends}{rounded}."
    )
    if len(charts) > 1:
        caption += (
            " Representation drift: how far hidden states moved (Kornblith et al. 2019), without "
            "each prompt's first token, which alone may decide it."
        )
    return Figure(caption, tuple(charts), 2, tuple(recipe_keys(results, "line")))


def _spectrum(inspection: InspectionRecord) -> list[tuple[int, float]]:
    """Index, and the mean over matrices of singular value / the matrix's largest."""
    spectra = [m.singular_values for m in inspection.matrices if m.singular_values]
    longest = max(map(len, spectra), default=0)
    points = []
    for index in range(longest):
        own = [s[index] / s[0] if index < len(s) else 0.0 for s in spectra if s[0] > 0]
        points.append((index + 1, sum(own) / max(len(own), 1)))
    return points


def _representation(inspection: InspectionRecord) -> list[tuple[int, float]]:
    return [(layer.layer, layer.cka_drift_without_first) for layer in inspection.representation]


def _lines(
    results: Results, seen: Inspected, read: Callable[[InspectionRecord], list[tuple[int, float]]]
) -> list[Trace]:
    marks = recipe_marks(results)
    traces = []
    for record, inspection in seen:
        points = read(inspection)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(points) <= 12 else "lines",
                "x": [x for x, _ in points],
                "y": [y for _, y in points],
                "line": {"color": marks[record.config.recipe].colour, "width": 2},
                "marker": {"size": 5},
                "text": [hover(results, record)] * len(points),
                "hovertemplate": "%{text}<br>%{x}: %{y:.3g}<extra></extra>",
            }
        )
    return [trace for trace in traces if trace["x"]]


def _against_forgetting(results: Results, seen: Inspected) -> Figure | None:
    """Plot forgetting against intruder dimensions and against relative norm."""
    known = [(r, i) for r, i in seen if r.metric(FORGETTING_MEAN) is not None]
    if len(known) < 3:
        return None
    found = [(r, i.intruders_per_matrix) for r, i in known]
    intruders = [(r, count) for r, count in found if count is not None]
    sizes = [
        (r, [m.relative_norm for m in i.matrices if m.relative_norm is not None]) for r, i in known
    ]
    norms = [(r, fmean(of_matrices)) for r, of_matrices in sizes if of_matrices]
    charts = [
        Chart(
            key,
            f"Forgetting against {title}",
            f"Scatter plot of forgetting against {title}, {len(shown)} trials.",
            _coloured(results, shown),
            {"xaxis": axis(title), "yaxis": axis(axis_title(FORGETTING_MEAN))},
        )
        for key, title, shown in (
            ("intruders", "intruder dimensions per matrix", intruders),
            ("norms", "relative norm, mean over matrices", norms),
        )
        if shown
    ]
    caption = "Each point is a trial that was looked into."
    if intruders:
        caption += (
            " An intruder is one of the ten largest singular directions of the tuned matrix that "
            "resembles none of the base's (arXiv 2410.21228)."
        )
    return Figure(caption, tuple(charts), 2, tuple(point_keys(results)))


def _coloured(results: Results, shown: Sequence[tuple[TrialRecord, float]]) -> list[Trace]:
    records = [record for record, _ in shown]
    forgetting = [record.metric(FORGETTING_MEAN) for record in records]
    return [point_trace(results, records, [x for _, x in shown], forgetting)]
