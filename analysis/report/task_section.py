"""Task by task: the forgetting matrix, gains, and flips with examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from analysis.report.charts import Chart, Figure, groups_in_words, heatmap, leading_groups
from analysis.results.formatting import points
from analysis.shown_sweeps import Results
from analysis.stats.significance import holm
from trainables import metric_keys
from trainables.config import Role
from trainables.records.item_records import PairedItem
from trainables.records.schema import TrialRecord

# Of more tasks, side by side, neither the names nor the numbers can be read.
_MOST_ACROSS = 12
_MOST_EXAMPLES = 3
_MOST_CHARACTERS = 600


def task_figure(results: Results) -> Figure | None:
    """Forgetting and gains, in and out of domain, of the best of each recipe and capacity."""
    charts: list[Chart] = []
    bests = [group.best for group in leading_groups(results)]
    retention = list(results.tasks("retention"))
    if bests and retention:
        keys = [metric_keys.task_forgetting(label) for label in retention]
        forgetting = [[best.metric(key) for key in keys] for best in bests]
        charts.append(_matrix(results, "Forgetting", retention, forgetting, better="low"))
    roles: tuple[Role, ...] = ("in_domain", "ood")
    gained = [
        (label, metric_keys.task_score(role, label, task.metric), task.value)
        for role in roles
        for label, task in results.tasks(role).items()
    ]
    if bests and gained:
        values = [
            [None if (own := best.metric(key)) is None else own - base for _, key, base in gained]
            for best in bests
        ]
        labels = [label for label, *_ in gained]
        charts.append(_matrix(results, "Gain", labels, values, better="high"))
    if not charts:
        return None
    where = "in the domain and out of it" if results.tasks("in_domain") else "out of the domain"
    caption = (
        f"Points of accuracy at the best trade-off of each {groups_in_words(results)}. Forgetting "
        f"is base minus tuned on the retention tasks; gain is tuned minus base {where}."
    )
    is_long = max(len(retention), len(gained)) > _MOST_ACROSS
    return Figure(caption, tuple(charts), columns=1 if is_long else 2)


def _matrix(
    results: Results,
    title: str,
    tasks: Sequence[str],
    values: Sequence[Sequence[float | None]],
    better: Literal["low", "high"],
) -> Chart:
    """The tasks are side by side if they are few, else one below another.

    `values`: shares, a row for each of the `leading_groups` with one for each task.
    """
    groups = leading_groups(results)
    labels = [group.label for group in groups]
    points_lost = {"low": 100, "high": -100}[better]
    lost = [[None if v is None else points_lost * v for v in row] for row in values]
    texts = [["" if v is None else points(v) for v in row] for row in values]
    hovers = [[escape(f"{group.label}, {task}") for task in tasks] for group in groups]
    says = f"{title} in points: " + "; ".join(
        f"{label}: " + ", ".join(f"{t} {v}" for t, v in zip(tasks, row, strict=True) if v)
        for label, row in zip(labels, texts, strict=True)
    )
    axis = {"type": "category", "automargin": True, "showgrid": False}
    down = axis | {"autorange": "reversed"}
    if len(tasks) > _MOST_ACROSS:
        turned = [list(zip(*cells, strict=True)) for cells in (lost, texts, hovers)]
        trace = heatmap(labels, tasks, turned[0], diverging=True, texts=turned[1], hovers=turned[2])
        layout, height = {"xaxis": axis | {"side": "top"}, "yaxis": down}, 120 + 22 * len(tasks)
    else:
        trace = heatmap(tasks, labels, lost, diverging=True, texts=texts, hovers=hovers)
        layout, height = {"xaxis": axis | {"tickangle": -35}, "yaxis": down}, 180 + 34 * len(labels)
    key = f"matrix-{title.lower()}"
    return Chart(key, f"{title} by task (points)", says, [trace], layout, height)


@dataclass(frozen=True)
class Flips:
    """Items of one task on which a trial and the base differ.

    Attributes:
        forgotten: number that went from right to wrong; right is a score above 0.5.
        gained: number that went from wrong to right.
        p_value: of the difference in accuracy (`Items.compare`), to which grades add that change
            without passing 0.5, corrected for having picked the trial on these items (Bonferroni),
            then adjusted over the tasks (Holm).
        examples: forgotten items on retention tasks, gained items elsewhere.
    """

    task: str
    role: Role
    items: int
    forgotten: int
    gained: int
    p_value: float
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Example:
    """One item, as text."""

    prompt: str
    target: str
    before: str
    after: str


def flips(results: Results, record: TrialRecord) -> list[Flips]:
    """Flips of every task; empty if the items are not on disk."""
    pairs = results.items.pairs(record)
    if not pairs:
        return []
    of = len(results.candidates)
    compared = [results.items.compare(record, None, [task], of) for task in pairs]
    adjusted = holm([comparison.p_value if comparison else 1.0 for comparison in compared])
    found = []
    for (task, own), p_value in zip(pairs.items(), adjusted, strict=True):
        role = results.base.scores[task].role
        forgotten = [pair for pair in own if pair.is_forgotten]
        gained = [pair for pair in own if pair.is_gained]
        shown = forgotten if role == "retention" else gained
        examples = tuple(map(_example, shown[:_MOST_EXAMPLES]))
        found.append(Flips(task, role, len(own), len(forgotten), len(gained), p_value, examples))
    order = {"retention": 0, "in_domain": 1, "ood": 2}
    return sorted(found, key=lambda f: (order[f.role], f.p_value))


def _example(pair: PairedItem) -> Example:
    texts = (pair.base.prompt, pair.base.target, pair.base.answer, pair.tuned.answer)
    return Example(*map(_shortened, texts))


def _shortened(text: str) -> str:
    """The end of a long text, where the question follows its few-shot examples."""
    return text if len(text) <= _MOST_CHARACTERS else f"... {text[-_MOST_CHARACTERS:]}"
